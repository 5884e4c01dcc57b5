"""The step's face to Kubeflow Pipelines."""

from typing import Any

from kfp import dsl

from chatmetrics.components.image import image


@dsl.component(base_image=image("convert"), install_kfp_package=False)
def convert(
    model_uri: str,
    models_uri: str,
    name: str,
    version: str,
    settings: dict[str, Any],
    provenance: dict[str, str],
    model: dsl.Output[dsl.Model],
    prompt: dict[str, Any] = {},  # noqa: B006 (KFP wants a constant)
    revision: str = "",
    fingerprint: str = "",
    round_number: int = 0,
    logs_uri: str = "",
) -> str:
    """Convert and quantize a merged model and store it as a candidate; returns the URI of candidate.json.

    Args:
        model_uri: the Hugging Face folder: a path, file:// or s3:// prefix; or a Hub name.
        models_uri: where models are kept: a folder, file:// or s3:// prefix.
        name: name of the model.
        version: its version; "" names it after its content.
        settings: the recipe's section `convert`.
        provenance: hashes of dataset, base and adapter, for the manifest.
        model: the manifest, with where the weights are as its metadata: KFP would copy the weights themselves.
        prompt: the recipe's section `preprocess`; the manifest keeps how the schema goes into the prompt.
        revision: branch, tag or commit of a Hub name.
        fingerprint: of the model, so that KFP's cache sees when its files change.
        round_number: of the round that another one follows; 0: the last or only one.
        logs_uri: the run's folder, where the step keeps its log and how it ended; empty keeps none.
    """
    import shutil
    import tempfile
    from pathlib import Path

    from chatmetrics.components.convert import convert as work
    from chatmetrics.components.convert.settings import ConvertSettings
    from chatmetrics.components.run_record import recorded, with_round
    from chatmetrics.components.storage.manifest import read_manifest, stage
    from chatmetrics.components.storage.models import local_model

    parsed = ConvertSettings.model_validate(settings)
    with recorded(with_round("convert-student" if provenance else "convert-base", round_number), logs_uri):
        source = local_model(model_uri, revision)
        output = Path(tempfile.mkdtemp(prefix="convert-"))  # stays when the conversion fails: the log is in it
        report = work.convert(parsed, source, output, name)
        description = {
            **work.description(parsed, source, report),
            **work.prompt_description(prompt),
            "provenance": provenance or {"base_fingerprint": fingerprint},
        }
        uri = stage(models_uri, name, version, report.files, description)
        shutil.rmtree(output)
    manifest = read_manifest(uri)
    Path(model.path).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    model.metadata |= {"uri": uri, "sha256": manifest.files[0].sha256, **manifest.provenance}
    return uri
