"""The evaluate step as a KFP component."""

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
    answers_uri: str = "",
) -> NamedTuple("Outputs", [("passed", bool), ("accuracy", float), ("base_accuracy", float)]):  # type: ignore[valid-type]
    """Score a student, and its base model on the same questions.

    Args:
        dataset: the folder that preprocess wrote.
        adapter: the folder that train wrote, for its loss curve and the dev questions that chose it.
        student_uri: candidate.json or manifest.json of the student.
        base_uri: candidate.json or manifest.json of the base model; empty skips it.
        databases: folder or s3:// prefix of SQLite files; empty uses the one named in the dataset.
        settings: the recipe's `evaluate` section; see EvaluateSettings.
        report: the folder of report.json, report.html and the predictions.
        page: report.html, for KFP's UI.
        summary: report.md, for KFP's UI.
        metrics: the accuracies in percent.
        round_number: number of the distillation round; 0 for the last or only round.
        logs_uri: the run's folder, to which the step writes its log and state; empty writes none.
        answers_uri: folder that keeps the models' answers, so that a retry resumes; empty for `logs_uri`/answers.
    """
    import shutil
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from chatmetrics.components.evaluate.evaluate import BASE, STUDENT, evaluate, fetch_model
    from chatmetrics.components.evaluate.questions import questions_that_chose
    from chatmetrics.components.evaluate.settings import EvaluateSettings
    from chatmetrics.components.run_record import recorded, with_round, with_run_id

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
            chose_adapter=questions_that_chose(Path(adapter.path)),
            answers=answers_uri or (f"{with_run_id(logs_uri)}/answers" if logs_uri else ""),
        )
    shutil.copyfile(Path(report.path) / "report.html", page.path)
    shutil.copyfile(Path(report.path) / "report.md", summary.path)
    # KFP's local runner caches the step only if its metrics file exists.
    shutil.copyfile(Path(report.path) / "report.json", metrics.path)
    for system, score in scored.systems.items():
        metrics.log_metric(f"{system} accuracy", round(100 * score.strict.accuracy, 1))
        metrics.log_metric(f"{system} official accuracy", round(100 * score.official.accuracy, 1))
    for name, held_out in scored.held_out.items():
        for system, found in held_out.by(scored.verdict).items():
            metrics.log_metric(f"{system} accuracy, {name}", round(100 * found.accuracy, 1))
    accuracy = {system: score.by(scored.verdict).accuracy for system, score in scored.systems.items()}
    return (scored.passed, accuracy[STUDENT], accuracy.get(BASE, 0.0))
