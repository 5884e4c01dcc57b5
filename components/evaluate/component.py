"""The evaluate step's face to KFP."""

from typing import Any, NamedTuple

from kfp import dsl

from chatmetrics.components.image import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def evaluate(
    dataset: dsl.Input[dsl.Dataset],
    adapter: dsl.Input[dsl.Artifact],
    student_uri: str,
    base_uri: str,
    databases: str,
    settings: dict[str, Any],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    round_number: int = 0,
    logs_uri: str = "",
) -> NamedTuple("Outputs", [("passed", bool), ("accuracy", float), ("base_accuracy", float)]):  # type: ignore[valid-type]
    """Score a published student, and its base on the same questions.

    Args:
        dataset: the folder that preprocess wrote.
        adapter: the folder that train wrote, for its loss curve.
        student_uri: candidate.json or manifest.json of the student.
        base_uri: the same of the base model; empty: it is not scored.
        databases: folder of SQLite files, also s3://; empty: the one that the dataset names.
        settings: the recipe's `evaluate` section; see EvaluateSettings.
        report: the folder of report.json, report.html and the predictions.
        page: report.html for the console.
        summary: report.md for the console.
        metrics: the accuracies in percent.
        round_number: of the round that another one follows; 0: the last or only one.
        logs_uri: the run's folder, where the step keeps its log and how it ended; empty keeps none.
    """
    import shutil
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from chatmetrics.components.evaluate.evaluate import BASE, STUDENT, evaluate, fetch_model
    from chatmetrics.components.evaluate.settings import EvaluateSettings
    from chatmetrics.components.run_record import recorded, with_round

    options = EvaluateSettings.model_validate(settings)
    loss = Path(adapter.path) / "loss.png"
    with recorded(with_round("evaluate", round_number), logs_uri), TemporaryDirectory() as folder:
        scored = evaluate(
            options,
            dataset=Path(dataset.path),
            databases=databases,
            student=fetch_model(student_uri, Path(folder) / "student"),
            base=fetch_model(base_uri, Path(folder) / "base") if base_uri and options.score_base else None,
            output=Path(report.path),
            loss=loss if loss.is_file() else None,
        )
    shutil.copyfile(Path(report.path) / "report.html", page.path)
    shutil.copyfile(Path(report.path) / "report.md", summary.path)
    # The local runner caches the step only when the file of its metrics exists.
    shutil.copyfile(Path(report.path) / "report.json", metrics.path)
    for system, score in scored.systems.items():
        metrics.log_metric(f"{system} accuracy", round(100 * score.strict.accuracy, 1))
        metrics.log_metric(f"{system} official accuracy", round(100 * score.official.accuracy, 1))
    accuracy = {system: score.by(scored.verdict).accuracy for system, score in scored.systems.items()}
    return (scored.passed, accuracy[STUDENT], accuracy.get(BASE, 0.0))
