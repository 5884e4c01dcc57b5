"""The preprocess step's KFP component."""

from typing import Any

from kfp import dsl

from chatmetrics.components.image import image


@dsl.component(base_image=image("preprocess"), install_kfp_package=False)
def preprocess(
    settings: dict[str, Any],
    dataset: dsl.Output[dsl.Dataset],
    card: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    data_fingerprint: str = "",
    logs_uri: str = "",
) -> None:
    """Turn questions, SQL queries and databases into a dataset.

    Args:
        settings: the recipe's `preprocess` section; see PreprocessSettings.
        dataset: folder for train.jsonl, dev.jsonl, dataset_info.json and the card.
        card: the dataset card, for the console.
        metrics: numbers of examples by split, of pruned schemas, of dropped questions, and of gold
            queries that use a name that their prompt does not show.
        data_fingerprint: fingerprint of the input files; invalidates KFP's cache when they change.
        logs_uri: the run's folder, where the step writes its log and exit status; empty writes nothing.
    """
    from pathlib import Path

    from chatmetrics.components.preprocess.preprocess import preprocess
    from chatmetrics.components.preprocess.settings import PreprocessSettings
    from chatmetrics.components.run_record import recorded
    from chatmetrics.components.storage.files import sha256_of

    with recorded("preprocess", logs_uri):
        described = preprocess(PreprocessSettings.model_validate(settings), Path(dataset.path))
    Path(card.path).write_text(described.markdown(), encoding="utf-8")
    # The local runner caches the step only if its metrics file exists.
    Path(metrics.path).touch()
    for split, count in described.splits.items():
        metrics.log_metric(split, count)
    metrics.log_metric("pruned", sum(described.pruned.values()))
    metrics.log_metric("dropped", len(described.dropped))
    metrics.log_metric("not shown", len(described.not_shown))
    dataset.metadata["databases"] = described.databases
    dataset.metadata["sha256"] = sha256_of(Path(dataset.path) / "train.jsonl")
