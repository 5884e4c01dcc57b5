"""The exit task: whatever became of a run, its record says so."""

from kfp import dsl

from chatmetrics.components.image import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def outcome(status: dsl.PipelineTaskFinalStatus, name: str, run_uri: str) -> None:
    """Write outcome.json: how the run ended and, when it came that far, its scores, report and published model.

    Args:
        status: how the run ended, from KFP.
        name: of the recipe.
        run_uri: folder of the run's record.
    """
    import json
    import sys
    from datetime import UTC, datetime

    from chatmetrics.components.storage.store import open_store

    store = open_store(run_uri)
    scores = json.loads(store.read_bytes("scores.json")) if store.exists("scores.json") else {}
    record = {
        "name": name,
        "state": status.state,
        "message": status.error_message,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        **scores,
    }
    store.put_bytes(json.dumps(record, indent=2).encode(), "outcome.json", overwrite=True)
    print(f"{name}: {status.state}; report: {scores.get('report', 'none, the run ended before it')}", file=sys.stderr)
