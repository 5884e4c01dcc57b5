"""What a check of `chatmetrics doctor` returns: one line, and whether it is good."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from kubernetes.client.exceptions import ApiException

from chatmetrics.components.errors import UserError

Verdict = Literal["ok", "skipped", "warning", "failed"]  # the worst last


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        verdict: how good it is.
        line: what was found, or what to do about it.
    """

    verdict: Verdict
    line: str


class Skipped(Exception):
    """A check needs something that is not available; the text says what."""


def combined(findings: Iterable[Finding]) -> Finding:
    """Combine findings into one line: those that are not ok, the worst first; or all of them if all are ok."""
    order = get_args(Verdict)
    ranked = sorted(findings, key=lambda finding: -order.index(finding.verdict))
    problems = [finding for finding in ranked if finding.verdict != "ok"]
    return Finding(ranked[0].verdict, "; ".join(dict.fromkeys(finding.line for finding in problems or ranked)))


def is_denied(error: UserError) -> bool:
    """Whether an error means that Kubernetes denied us access, so that the answer is unknown."""
    cause = error.__cause__
    return isinstance(cause, ApiException) and cause.status in (401, 403)
