"""The train step's KFP component."""

from typing import Any

from kfp import dsl

from chatmetrics.components.image import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def train(
    settings: dict[str, Any],
    dataset: dsl.Input[dsl.Dataset],
    base_model: str,
    checkpoints: str,
    adapter: dsl.Output[dsl.Model],
    curve: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    revision: str = "",
    base_fingerprint: str = "",
    resume_from: str = "",
    round_number: int = 0,
    logs_uri: str = "",
) -> None:
    """Train a LoRA adapter of the base model on the dataset.

    Args:
        settings: the recipe's `train` section; see TrainSettings.
        dataset: the folder that preprocess wrote.
        base_model: a folder, URI or Hub name.
        checkpoints: folder, file:// or s3:// URI of this one run, `{run}` being the id of the KFP run; an interrupted
            run resumes from there.
        adapter: the folder with the PEFT adapter, its loss curve and its run record.
        curve: the loss curve, shown in the KFP console.
        metrics: loss, steps, tokens and seconds.
        revision: branch, tag or commit of a Hub name.
        base_fingerprint: a hash of the base's files, so that KFP's cache key changes when they do.
        resume_from: checkpoints of an earlier run, to resume from if this one has none.
        round_number: number of a distillation round that is not the last; each has its own checkpoints. 0: the last.
        logs_uri: the run's folder, to which the step writes its log and its outcome; empty: nowhere.
    """
    import json
    from base64 import b64encode
    from pathlib import Path

    from chatmetrics.components.kfp_launcher import launcher_held
    from chatmetrics.components.run_record import recorded, with_round, with_run_id
    from chatmetrics.components.storage.files import sha256_of
    from chatmetrics.components.train.checkpoints.upload import durable_checkpoints
    from chatmetrics.components.train.launch import exit_on_sigterm, train
    from chatmetrics.components.train.settings import TrainSettings

    output = Path(adapter.path)
    parsed = TrainSettings.model_validate(settings)
    checkpoints = with_run_id(with_round(checkpoints, round_number, "/"))
    earlier = with_round(resume_from, round_number, "/") if resume_from else ""
    with (
        launcher_held(),
        recorded(with_round("train", round_number), logs_uri),
        exit_on_sigterm(),
        durable_checkpoints(checkpoints, earlier, parsed.keep_checkpoints) as folder,
    ):
        train(parsed, Path(dataset.path), base_model, output, folder, revision)
    record = json.loads((output / "run.json").read_bytes())
    image = b64encode((output / "loss.png").read_bytes()).decode()
    Path(curve.path).write_text(f'<img alt="loss" src="data:image/png;base64,{image}">', encoding="utf-8")
    # The artifact's lineage in KFP: its hash, and those of its inputs.
    adapter.metadata["sha256"] = sha256_of(output / "adapter_model.safetensors")
    for name in ("base_model", "base_fingerprint", "dataset_sha256"):
        adapter.metadata[name] = record[name]
    # The local runner caches the step only if the metrics artifact's file exists.
    Path(metrics.path).touch()
    for name in ("loss", "steps", "tokens", "seconds", "examples"):
        metrics.log_metric(name, record[name])
