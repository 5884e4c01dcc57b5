"""The teacher's own answers to the dev questions, for the report."""

from dataclasses import asdict
from typing import Any

from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.distill.session import Session
from chatmetrics.components.distill.teacher.request import TeacherAnswer
from chatmetrics.components.nl2sql.example import Example


def score_teacher(session: Session) -> list[dict[str, Any]]:
    """Ask the teacher the dev questions once; returns its answers as predictions that evaluate can read."""
    requests = {example.id: session.score_request(example) for example in session.dev if session.has_schema(example)}
    answers = session.ask(list(requests.values()), "asking the teacher dev questions")
    return [
        _prediction(example, answer)
        for example in session.dev
        if example.id in requests and (answer := answers.get(requests[example.id].key(session.settings)))
    ]


def _prediction(example: Example, answer: TeacherAnswer) -> dict[str, Any]:
    return {
        **{name: getattr(example, name) for name in ("id", "db_id", "question", "split")},
        "gold": example.sql,
        "predicted": Sample.of(example, 0, answer).sql,
        "latency": answer.seconds,
        **{name: asdict(answer)[name] for name in ("first_token", "prompt_tokens", "completion_tokens")},
        "truncated": answer.is_cut,
    }
