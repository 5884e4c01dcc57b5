"""The one DAG: data in, a scored and published model out. It runs on this machine as it runs on a cluster."""

from typing import Any

from kfp import dsl

from chatmetrics.components.convert.component import convert
from chatmetrics.components.evaluate.component import evaluate
from chatmetrics.components.merge.component import merge
from chatmetrics.components.preprocess.component import preprocess
from chatmetrics.components.train.component import train
from chatmetrics.pipelines.gate import gate
from chatmetrics.pipelines.outcome import outcome


@dsl.pipeline(name="distillation", description="From questions and SQL to a small model that writes SQL.")
def distillation(
    name: str,
    base_model: str,
    revision: str,
    preprocess_settings: dict[str, Any],
    train_settings: dict[str, Any],
    merge_settings: dict[str, Any],
    convert_settings: dict[str, Any],
    evaluate_settings: dict[str, Any],
    models_uri: str,
    merged_uri: str,
    checkpoints: str,
    run_uri: str,
    data_fingerprint: str = "",
    base_fingerprint: str = "",
) -> None:
    """Distil an NL2SQL ability into a copy of the base model.

    Args:
        name: of the published model.
        base_model: a folder, URI or Hub name.
        revision: branch, tag or commit of a Hub name; empty is its default branch.
        preprocess_settings: the recipe's section of that name, as are the next ones.
        train_settings: see TrainSettings.
        merge_settings: see MergeSettings.
        convert_settings: see ConvertSettings.
        evaluate_settings: see EvaluateSettings.
        models_uri: store that student and base are published in.
        merged_uri: folder for the merged model, which is too large for an artifact.
        checkpoints: durable folder of this training; an interrupted one goes on from there.
        run_uri: store for the run's record: scores.json, outcome.json.
        data_fingerprint: of the files that preprocess reads, so that cached steps run again when they change.
        base_fingerprint: of the base model, likewise.
    """
    ending = outcome(name=name, run_uri=run_uri)
    ending.set_caching_options(False)
    with dsl.ExitHandler(ending, name="distil"):
        data = preprocess(settings=preprocess_settings, data_fingerprint=data_fingerprint)
        trained = train(
            settings=train_settings,
            dataset=data.outputs["dataset"],
            base_model=base_model,
            revision=revision,
            base_fingerprint=base_fingerprint,
            checkpoints=checkpoints,
        )
        merged = merge(
            settings=merge_settings,
            base_model=base_model,
            revision=revision,
            adapter=trained.outputs["adapter"],
            output_uri=merged_uri,
        )
        student = convert(
            settings=convert_settings,
            model_uri=merged.outputs["model_uri"],
            provenance=merged.outputs["provenance"],
            prompt=preprocess_settings,
            models_uri=models_uri,
            name=name,
            version="",
        ).set_display_name("convert student")
        # After the data, so that a wrong path is found before a large base is converted.
        base = (
            convert(
                settings=convert_settings,
                model_uri=base_model,
                revision=revision,
                fingerprint=base_fingerprint,
                provenance={},
                models_uri=models_uri,
                name=f"{name}-base",
                version="",
            )
            .set_display_name("convert base")
            .after(data)
        )
        scored = evaluate(
            settings=evaluate_settings,
            dataset=data.outputs["dataset"],
            databases="",
            adapter=trained.outputs["adapter"],
            student_uri=student.output,
            base_uri=base.output,
        )
        # Not cached: the record is this run's.
        gate(report=scored.outputs["report"], manifest_uri=student.output, run_uri=run_uri).set_caching_options(False)
