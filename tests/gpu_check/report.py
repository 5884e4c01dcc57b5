"""The report as Markdown, with one table of all checks."""

from typing import Any


def markdown(facts: dict[str, Any]) -> str:
    """Format what `run.py` writes to gpu-check.json."""
    device = facts["device"]
    lines = [
        "# gpu-check",
        "",
        f"{device.get('name', 'CPU')}, {facts['time']}, commit {facts['commit']}, {facts['seconds']:.0f} s",
        "",
        "| check | status | seconds | found |",
        "|---|---|---|---|",
    ]
    for check in facts["checks"]:
        found = "; ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in check["found"].items())
        told = "; ".join(filter(None, [check["reason"], found])).replace("|", "\\|")
        lines.append(f"| {check['check']} | {check['status']} | {check['seconds']:.0f} | {told} |")
    lines += ["", "| package | needed | found | |", "|---|---|---|---|"]
    for package in facts["packages"]:
        lines.append(f"| {package['name']} | {package['needed']} | {package['found'] or '-'} | {package['source']} |")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_text(part)}" for name, part in value.items()) + ")"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)
