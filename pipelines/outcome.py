"""The exit task: records how a run ended, whether it succeeded or failed."""

from kfp import dsl

from chatmetrics.components.image import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def outcome(
    status: dsl.PipelineTaskFinalStatus,
    name: str,
    run_uri: str,
    summary: dsl.Output[dsl.Markdown],
    price_per_hour: float = 0.0,
) -> None:
    """Write outcome.json and a summary: how the run ended, its results and their locations, its cost, what to do next.

    Args:
        status: how the run ended, from KFP.
        name: name of the recipe.
        run_uri: folder of the run's record; `{run}` is replaced by the id of the KFP run.
        summary: the summary as Markdown, for KFP's console.
        price_per_hour: price per hour of the GPUs that train runs on.
    """
    import json
    from pathlib import Path

    from chatmetrics.components.console import info
    from chatmetrics.components.run_record import with_run_id
    from chatmetrics.components.run_summary import summarize
    from chatmetrics.components.storage.store import open_store

    store = open_store(with_run_id(run_uri))
    record, text = summarize(store, name, status.state, status.error_message, price_per_hour)
    store.put_bytes(json.dumps(record, indent=2).encode(), "outcome.json", overwrite=True)
    store.put_bytes(text.encode(), "summary.md", overwrite=True)
    Path(summary.path).write_text(text, encoding="utf-8")
    info(text)
