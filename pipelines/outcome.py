"""The exit task: whatever became of a run, its record says so."""

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
    """Write outcome.json and a summary: how the run ended, what was made, where it lies, what it cost, what is next.

    Args:
        status: how the run ended, from KFP.
        name: of the recipe.
        run_uri: folder of the run's record, `{run}` being the id of the KFP run.
        summary: for the console.
        price_per_hour: of what train runs on.
    """
    import json
    import sys
    from pathlib import Path

    from chatmetrics.components.run_record import with_run_id
    from chatmetrics.components.run_summary import summarize
    from chatmetrics.components.storage.store import open_store

    store = open_store(with_run_id(run_uri))
    record, text = summarize(store, name, status.state, status.error_message, price_per_hour)
    store.put_bytes(json.dumps(record, indent=2).encode(), "outcome.json", overwrite=True)
    store.put_bytes(text.encode(), "summary.md", overwrite=True)
    Path(summary.path).write_text(text, encoding="utf-8")
    print(text, file=sys.stderr)
