"""How a run ended, told from what its steps left in the run's folder."""

import json
from datetime import UTC, datetime
from typing import Any

from chatmetrics.components.storage.store import Store


def summarize(store: Store, name: str, state: str, message: str, price_per_hour: float) -> tuple[dict[str, Any], str]:
    """Return a run's outcome for machines and, with the reason of a failure first, for people.

    Args:
        store: the run's folder.
        name: of the recipe.
        state: KFP's word for how it ended.
        message: KFP's own reason, for a run that failed before a step could say why.
        price_per_hour: of what train ran on.

    Raises:
        StorageError: the store did not answer.
    """
    state = "SUCCEEDED" if state == "COMPLETE" else state  # what KFP before 2.15 calls it
    steps = [json.loads(store.read_bytes(key)) for key in store.list("steps/") if key.endswith(".json")]
    steps.sort(key=lambda step: step["started"])
    scores = json.loads(store.read_bytes("scores.json")) if store.exists("scores.json") else {}
    served = json.loads(store.read_bytes("deployment.json")) if store.exists("deployment.json") else {}
    failed = next((step for step in steps if step["state"] in ("failed", "interrupted")), None)
    reason = f"{failed['step']}: {failed['reason']}" if failed else message
    hours = sum(_hours(step) for step in steps if step["step"].partition("-")[0] == "train")
    record = {
        "name": name,
        "state": state,
        "message": "" if state == "SUCCEEDED" else reason,
        "kind": failed["kind"] if failed else "",
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "train_hours": round(hours, 3),
        "cost": round(hours * price_per_hour, 2),
        **scores,
        **{key: served[key] for key in ("endpoint", "revision") if key in served},
    }
    return record, _text(record, steps, store.uri(""))


def accuracy_line(record: dict[str, Any]) -> str:
    """A run's accuracy, what the gate wants, and its teacher's accuracy where that is known."""
    teacher = record.get("teacher_accuracy")
    beside = "" if teacher is None else f"; its teacher's is {teacher:.1%}"
    return f"accuracy {record['gate_accuracy']:.1%}, the gate is {record['gate']:.1%}{beside}"


def _hours(step: dict[str, Any]) -> float:
    times = [datetime.fromisoformat(step[key]) for key in ("started", "ended") if key in step]
    return (times[1] - times[0]).total_seconds() / 3600 if len(times) > 1 else 0.0


def _text(record: dict[str, Any], steps: list[dict[str, Any]], folder: str) -> str:
    lines = [f"# {record['name']}: {record['state']}", ""]
    if record["message"]:
        lines += [f"**{record['message']}**", ""]
    lines += [f"- {step['step']}: {step['summary']}" for step in steps if step.get("summary")]
    if "gate_accuracy" in record:
        lines += [f"- {accuracy_line(record)}", f"- report: {record['report']}"]
    if record.get("manifest_uri"):
        lines += [f"- published: {record['manifest_uri']}"]
    elif record.get("candidate_uri"):
        lines += [f"- not published: {record['candidate_uri']}"]
    if record.get("endpoint"):
        lines += [f"- served: {record['endpoint']}, revision {record['revision']}"]
    if steps:
        lines += [f"- logs of the steps that ran: {folder.rstrip('/')}/steps"]
    if record["train_hours"]:
        lines += [f"- training: {record['train_hours']:.2f} h, cost {record['cost']:.2f}"]
    lines += [f"- next: {_next(record)}", ""]
    rows = [f"| {step['step']} | {step['state']} | {step['node']} | {step.get('reason', '')} |" for step in steps]
    return "\n".join([*lines, "| step | state | node | reason |", "|---|---|---|---|", *rows, ""])


def _next(record: dict[str, Any]) -> str:
    if record.get("endpoint"):
        return "ask it: `chatmetrics endpoint` says how"
    if record.get("manifest_uri") and record["message"]:
        return f"mend the reason above, then `chatmetrics deploy {record['manifest_uri']}`; what served goes on serving"
    if record.get("manifest_uri"):
        return "serve it: `chatmetrics serve MANIFEST`"
    if "gate_accuracy" in record:
        return "read the report, change the recipe, submit again; or lower the gate"
    return "mend the reason above; `chatmetrics resume RUN` goes on from the last checkpoint"
