"""Predictions, a system's SQL for questions, and files of them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.storage.files import atomic_file

NEEDED = ("db_id", "gold", "predicted")
FAILED_BEFORE = ("first_answer", "first_error")
TEXTS = ("id", "question", "split", "difficulty")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One system's SQL for one question.

    Attributes:
        db_id: name of the database.
        gold: the gold query.
        predicted: untrusted text; empty when the system gave no SQL.
        question: text of the question; empty if unknown.
        id: the question's id; empty if unknown.
        split: the question's split; empty if unknown.
        difficulty: how hard a person called the question; empty if unknown.
        usage: time and tokens of the answer; None if not measured.
        fields: the record as it was read, including unknown fields.
        number: index of the prediction in its file.
        sampled_answers: the system's sampled answers to the same question.
    """

    db_id: str
    gold: str
    predicted: str
    question: str = ""
    id: str = ""
    split: str = ""
    difficulty: str = ""
    usage: "TokenUsage | None" = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)
    number: int = 0
    sampled_answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Time and tokens of an answer.

    Attributes:
        latency: seconds until the end of the answer, measured by the client.
        first_token: seconds until the first token.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the answer.
        truncated: whether the answer was cut at the token limit.
    """

    latency: float
    first_token: float
    prompt_tokens: int
    completion_tokens: int
    truncated: bool


def predicted(
    example: Example,
    sql: str,
    usage: TokenUsage,
    sampled_answers: Sequence[str] = (),
    failed_before: tuple[str, str] | None = None,
) -> Prediction:
    """The prediction for an example.

    Args:
        example: the question.
        sql: the answer.
        usage: its time and tokens.
        sampled_answers: see `Prediction`.
        failed_before: the first answer and the database's error, after which the model was asked again.
    """
    record = {
        "id": example.id,
        "db_id": example.db_id,
        "question": example.question,
        "split": example.split,
        "gold": example.sql,
        "predicted": sql,
        **({"evidence": example.evidence} if example.evidence else {}),
        **({"difficulty": example.difficulty} if example.difficulty else {}),
        **asdict(usage),
        **({"sampled_answers": list(sampled_answers)} if sampled_answers else {}),
        **dict(zip(FAILED_BEFORE, failed_before or (), strict=False)),
    }
    return prediction_of(record, f"example {example.id}", 0)


def prediction_of(record: Any, where: str, number: int) -> Prediction:
    """Return the prediction in a record with `db_id`, `gold` and `predicted` (null if there is no SQL).

    `id`, `question`, `split`, `difficulty`, `sampled_answers` and the fields of `TokenUsage` are optional; other fields
    are kept.

    Args:
        record: the record.
        where: what messages call it.
        number: its index in its file.

    Raises:
        InputError: a field is missing or has the wrong type.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object with the fields {', '.join(NEEDED)}")
    for name in NEEDED:
        if name not in record:
            raise InputError(f"{where}: the field '{name}' is missing")
        if not isinstance(record[name], str) and not (name == "predicted" and record[name] is None):
            raise InputError(f"{where}: the field '{name}' is not a string but {type(record[name]).__name__}")
    sampled = record.get("sampled_answers") or ()
    if not isinstance(sampled, list | tuple) or not all(isinstance(sql, str) for sql in sampled):
        raise InputError(f"{where}: the field 'sampled_answers' is not a list of strings")
    texts = {name: str(record[name]) for name in TEXTS if record.get(name) is not None}
    return Prediction(
        db_id=record["db_id"],
        gold=record["gold"],
        predicted=record["predicted"] or "",
        usage=_usage(record, where),
        fields=record,
        number=number,
        sampled_answers=tuple(sampled),
        **texts,
    )


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line. The file appears complete or not at all."""
    with atomic_file(path) as file:
        for record in records:
            # A lone surrogate, which a model can produce, is written as a JSON escape.
            line = json.dumps(record, ensure_ascii=False) + "\n"
            file.write(line.encode("utf-8", "backslashreplace"))


def question_keys(predictions: Sequence[Prediction]) -> list[tuple[str, str, str, int]]:
    """Keys to match questions of different files: database, question, gold query, and index among equal ones."""
    seen: Counter[tuple[str, str, str]] = Counter()
    keys = []
    for prediction in predictions:
        key = (prediction.db_id, prediction.question, prediction.gold)
        keys.append((*key, seen[key]))
        seen[key] += 1
    return keys


def _usage(record: Mapping[str, Any], where: str) -> TokenUsage | None:
    if "latency" not in record or "completion_tokens" not in record:
        return None
    try:
        return TokenUsage(
            latency=float(record["latency"]),
            first_token=float(record.get("first_token", 0.0)),
            prompt_tokens=int(record.get("prompt_tokens", 0)),
            completion_tokens=int(record["completion_tokens"]),
            truncated=bool(record.get("truncated", False)),
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: latency and token counts must be numbers ({error})") from error
