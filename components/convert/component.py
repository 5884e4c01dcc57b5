"""The convert step as a KFP component."""

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
    dataset: dsl.Input[dsl.Dataset] = None,  # type: ignore[assignment]
    prompt: dict[str, Any] = {},  # noqa: B006 (KFP requires a constant)
    revision: str = "",
    fingerprint: str = "",
    round_number: int = 0,
    logs_uri: str = "",
) -> str:
    """Convert and quantize a model and store it as a candidate. Returns the URI of candidate.json.

    Args:
        model_uri: the Hugging Face model: a folder, file:// URI, s3:// prefix or Hub name.
        models_uri: the store of models: a folder, file:// URI or s3:// prefix.
        name: name of the model.
        version: version of the model; "" takes a hash of its content.
        settings: the recipe's `convert` section; see ConvertSettings.
        provenance: hashes of dataset, base and adapter, for the manifest.
        model: the manifest, with the location of the weights as metadata. The weights are no KFP artifact, because KFP
            would copy them.
        dataset: the dataset that the model was trained on; what its prompts show in addition to the databases is
            published with the model. Absent for a base model.
        prompt: the recipe's `preprocess` section, from which the manifest takes the form of the schema in the prompt.
        revision: branch, tag or commit of a Hub name.
        fingerprint: fingerprint of the model, so that KFP's cache notices changed files.
        round_number: number of the distillation round; 0 for the last or only round.
        logs_uri: the run's folder, to which the step writes its log and state; empty writes none.
    """
    import shutil
    import tempfile
    from pathlib import Path

    from chatmetrics.components.base_model.references import local_model
    from chatmetrics.components.convert import convert as work
    from chatmetrics.components.convert.settings import ConvertSettings
    from chatmetrics.components.errors import InputError
    from chatmetrics.components.nl2sql.descriptions import FILE as DESCRIPTIONS
    from chatmetrics.components.nl2sql.prompts.template import dataset_template
    from chatmetrics.components.run_record import recorded, with_round
    from chatmetrics.components.storage.manifest import read_manifest, stage

    parsed = ConvertSettings.model_validate(settings)
    with recorded(with_round("convert-student" if provenance else "convert-base", round_number), logs_uri):
        source = local_model(model_uri, revision)
        if dataset and (given := dataset_template(Path(dataset.path))) != (trained := work.template_of(parsed, source)):
            raise InputError(
                f"{model_uri} was trained with the prompt template {trained.text!r}, but the dataset has "
                f"{given.text!r}; train and merge it again"
            )
        output = Path(tempfile.mkdtemp(prefix="convert-"))  # kept if the conversion fails, because it contains the log
        report = work.convert(parsed, source, output, name)
        description = {
            **work.description(parsed, source, report),
            **work.prompt_description(prompt),
            "provenance": provenance or {"base_fingerprint": fingerprint},
        }
        described = [Path(dataset.path) / DESCRIPTIONS] if dataset else []
        files = [*report.files, *filter(Path.is_file, described)]
        uri = stage(models_uri, name, version, files, description)
        shutil.rmtree(output)
    manifest = read_manifest(uri)
    Path(model.path).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    model.metadata |= {"uri": uri, "sha256": manifest.files[0].sha256, **manifest.provenance}
    return uri
