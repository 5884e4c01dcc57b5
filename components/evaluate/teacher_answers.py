"""The teacher's own answers to the questions that its student is asked, which distill leaves in the dataset."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.predictions import Prediction, question_keys, read_predictions
from chatmetrics.components.evaluate.questions import TRAINING
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.example import Example

TEACHER = "teacher"
FILE = "teacher.jsonl"


def teacher_answers(dataset: Path, examples: Sequence[Example], settings: EvaluateSettings) -> list[Prediction]:
    """What the teacher answered to these examples, as far as it was asked; nothing where training questions are asked.

    Raises:
        InputError: the file cannot be used, or the gate is about the teacher too and it answered no question of it.
    """
    path = dataset / FILE
    if settings.questions == TRAINING or not path.is_file():
        _check_gate(settings, f"{path} is missing", [])
        return []
    read = read_predictions(path)
    gated = [example for example in examples if settings.gate_split in ("", example.split)]
    _check_gate(settings, f"{path} has none to the questions of the gate", _answers_to(gated, read))
    answers = _answers_to(examples, read)
    if not answers:
        print(f"warning: {path} has no answer to any question that is asked", file=sys.stderr, flush=True)
    return answers


def _answers_to(examples: Sequence[Example], answers: Sequence[Prediction]) -> list[Prediction]:
    """The answers to examples of the same database, words and gold query, as many as there are such examples."""
    asked = Counter((example.db_id, example.question, example.sql) for example in examples)
    keyed = zip(question_keys(answers), answers, strict=True)
    return [answer for (db_id, question, gold, number), answer in keyed if number < asked[db_id, question, gold]]


def _check_gate(settings: EvaluateSettings, problem: str, answers: Sequence[Prediction]) -> None:
    """Fail before a model is loaded."""
    if settings.gate_teacher is not None and not answers:
        raise InputError(
            f"evaluate.gate_teacher is set, but the dataset has no teacher's answers: {problem}; "
            "set distill.score_teacher, or leave gate_teacher empty"
        )
