"""The distill step's KFP component."""

from typing import Any

from kfp import dsl

from chatmetrics.components.image import image


@dsl.component(base_image=image("distill"), install_kfp_package=False)
def distill(
    settings: dict[str, Any],
    dataset: dsl.Input[dsl.Dataset],
    ledger_uri: str,
    distilled: dsl.Output[dsl.Dataset],
    card: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    answers: dsl.Input[dsl.Artifact] = None,  # type: ignore[assignment]
    round_number: int = 1,
    data_fingerprint: str = "",
    logs_uri: str = "",
) -> None:
    """Ask a teacher and build a training dataset from its correct answers.

    Args:
        settings: the recipe's `distill` section; see DistillSettings.
        dataset: the folder that preprocess wrote.
        ledger_uri: folder or s3:// prefix of the ledger of answers and costs; later runs reuse it.
        distilled: folder of the new dataset, with distillation.json, ledger.jsonl and the teacher's dev answers.
        card: questions asked, samples that passed, and cost, for the console.
        metrics: the same numbers as KFP metrics.
        answers: report on the previous round's student on the training questions; absent in the first round.
        round_number: number of the round, from 1.
        data_fingerprint: fingerprint of the input files; invalidates KFP's cache when they change.
        logs_uri: the run's folder, where the step writes its log and exit status; empty writes nothing.
    """
    from pathlib import Path

    from chatmetrics.components.distill.distill import distill
    from chatmetrics.components.distill.settings import DistillSettings
    from chatmetrics.components.run_record import recorded, with_round
    from chatmetrics.components.storage.files import sha256_of

    parsed = DistillSettings.model_validate(settings)
    name = with_round("distill", round_number if round_number < parsed.students else 0)
    student = Path(answers.path) if answers else None
    with recorded(name, logs_uri) as record:
        done = distill(
            parsed,
            Path(dataset.path),
            Path(distilled.path),
            ledger_uri,
            answers=student,
            round_number=round_number,
        )
        record["summary"] = done.summary
    Path(card.path).write_text(done.markdown(), encoding="utf-8")
    # The local runner caches the step only if its metrics file exists.
    Path(metrics.path).touch()
    numbers = {"asked": done.asked, "samples": done.counts.samples, "passing": done.counts.passing}
    for name, count in {**numbers, **done.examples, "cost": round(done.spending.cost, 2)}.items():
        metrics.log_metric(name, count)
    distilled.metadata["teacher"] = done.teacher
    distilled.metadata["sha256"] = sha256_of(Path(distilled.path) / "train.jsonl")
