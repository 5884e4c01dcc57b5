"""A run's outcome, derived from the records that its steps wrote to the run's folder."""

import json
from datetime import UTC, datetime
from typing import Any

from chatmetrics.components.markdown import markdown_table, markdown_text
from chatmetrics.components.storage.store import Store


def summarize(store: Store, name: str, state: str, message: str, price_per_hour: float) -> tuple[dict[str, Any], str]:
    """Summarize a run: a record for machines and Markdown for people, with the reason for a failure first.

    Args:
        store: the run's folder.
        name: name of the recipe.
        state: final state as reported by KFP.
        message: KFP's own reason, for a run that failed before a step could report one.
        price_per_hour: price per hour of the machine that train ran on.

    Raises:
        StorageError: the store does not answer.
    """
    state = "SUCCEEDED" if state == "COMPLETE" else state  # KFP's name for it before 2.15
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
    """A run's accuracy, the gate's threshold and, if it was measured, the teacher's accuracy."""
    accuracy = record.get("teacher_accuracy")
    teacher = "" if accuracy is None else f"; teacher accuracy {accuracy:.1%}"
    return f"accuracy {record['gate_accuracy']:.1%}, the gate is {record['gate']:.1%}{teacher}"


def _hours(step: dict[str, Any]) -> float:
    times = [datetime.fromisoformat(step[key]) for key in ("started", "ended") if key in step]
    return (times[1] - times[0]).total_seconds() / 3600 if len(times) > 1 else 0.0


def _text(record: dict[str, Any], steps: list[dict[str, Any]], folder: str) -> str:
    lines = [f"# {markdown_text(record['name'])}: {record['state']}", ""]
    if record["message"]:
        lines += [f"**{markdown_text(record['message'])}**", ""]
    lines += [f"- {step['step']}: {markdown_text(step['summary'])}" for step in steps if step.get("summary")]
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
    rows = [(step["step"], step["state"], step["node"], step.get("reason", "")) for step in steps]
    return "\n".join([*lines, markdown_table(("step", "state", "node", "reason"), rows), ""])


def _next(record: dict[str, Any]) -> str:
    if record.get("endpoint"):
        return "ask it a question: `chatmetrics endpoint` prints its address"
    if record.get("manifest_uri") and record["message"]:
        return (
            f"fix the error above, then `chatmetrics deploy {record['manifest_uri']}`; "
            "the revision served before is still being served"
        )
    if record.get("manifest_uri"):
        return "serve it: `chatmetrics serve MANIFEST`"
    if "gate_accuracy" in record:
        return "read the report, then change the recipe and submit it again, or lower the gate"
    return "fix the error above, then `chatmetrics resume RUN`; training resumes from the last checkpoint"
