"""The report of the soak: a table for people, and the same as JSON."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.accounts import Judgment, Outcome
from tests.soak.clients import Exchange
from tests.soak.mix import Cut
from tests.soak.processes import Usage

# What a pod may use more after the load than before it; docs/soak.md says why.
TOLERANCE = {
    "proxy_mib": 10.0,
    "workers": 2,
    "workers_mib": 20.0,
    "descriptors": 4,
    "threads": 4,
    "queue": 0,
    "engines": 0,
    "engine_descriptors": 24,
}
SHARES = (50, 90, 99, 100)


@dataclass
class Report:
    """What the soak found; `violations` must be empty."""

    seed: int
    seconds: float = 0.0
    leaving: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    latency: dict[str, list[float]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    in_flight: dict[str, dict[str, int]] = field(default_factory=dict)
    retries: int = 0
    usage: dict[str, list[float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def count(self, results: Iterable[tuple[Exchange, Judgment]]) -> None:
        """Add the requests: outcomes, statuses by path, latency of complete answers, and violations."""
        outcomes: Counter[str] = Counter()
        statuses: Counter[str] = Counter()
        seconds: dict[str, list[float]] = {}
        for record, judgment in results:
            plan = record.plan
            self.leaving += plan.cut is not Cut.NOWHERE
            outcomes[judgment.outcome.value] += 1
            statuses[f"{plan.path} {record.status or 'without a status'}"] += 1
            if judgment.outcome is Outcome.ANSWERED and not plan.reads and not plan.sends:
                seconds.setdefault(f"{plan.path}{', streamed' if plan.streamed else ''}", []).append(record.seconds)
            if judgment.complaint:
                self.violations.append(f"{record.pod}: {plan.about()}: {judgment.complaint}")
        self.outcomes = {outcome.value: outcomes[outcome.value] for outcome in Outcome}
        self.statuses = dict(sorted(statuses.items()))
        self.latency = {
            name: [round(_percentile(each, share), 3) for share in SHARES] for name, each in seconds.items()
        }

    def compare(self, before: Usage | None, after: Usage | None) -> None:
        """Add what a pod used before and after the load; what did not return to its value is a violation."""
        if before is None or after is None:
            self.violations.append("what the pod uses could not be measured")
            return
        first, last = asdict(before), asdict(after)
        for name, tolerance in TOLERANCE.items():
            self.usage[name] = [first[name], last[name]]
            if last[name] > first[name] + tolerance:
                self.violations.append(
                    f"{name}: {first[name]} before the load, {last[name]} after it; up to {tolerance:g} more is normal"
                )

    def text(self) -> str:
        """The report for people."""
        total = sum(self.outcomes.values())
        in_flight = {
            name: ", ".join(f"{found[each]} {each}" for each in found) for name, found in self.in_flight.items()
        }
        tables: dict[str, Mapping[str, object]] = {
            "outcome of a request": {**self.outcomes, "total": total},
            "path and status": self.statuses,
            f"seconds to a complete answer: {', '.join(f'{share} %' for share in SHARES)}": {
                name: "  ".join(f"{value:7.3f}" for value in values) for name, values in sorted(self.latency.items())
            },
            "event": {f"{each['at']:5.0f} s  {each['kind']}": f"{each['pod']}: {each['note']}" for each in self.events},
            "requests in flight at an event": in_flight,
            "retries that the pods counted": {"all pods": self.retries},
            "used by the first pod before and after the load": {
                name: f"{before:10g} {after:10g}" for name, (before, after) in self.usage.items()
            },
        }
        parts = [
            f"{total} requests in {self.seconds:.0f} s with seed {self.seed}; "
            f"{self.leaving} of their clients were to disconnect early, unless the response came first",
            *(_table(title, rows) for title, rows in tables.items() if rows),
            "\n  ".join([f"violations: {len(self.violations)}", *self.violations]),
        ]
        return "\n\n".join(parts)

    def write(self, folder: Path) -> None:
        """Write report.txt and report.json."""
        (folder / "report.txt").write_text(self.text() + "\n", "utf-8")
        (folder / "report.json").write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[max(0, round(share / 100 * len(values)) - 1)]


def _table(title: str, rows: Mapping[str, object]) -> str:
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name:{width}}  {value}".rstrip() for name, value in rows.items())])
