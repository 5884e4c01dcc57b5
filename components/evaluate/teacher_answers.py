"""The teacher's answers to the student's questions, which distill writes to the dataset."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.prediction_files import read_predictions
from chatmetrics.components.evaluate.predictions import Prediction, question_keys
from chatmetrics.components.evaluate.questions import TRAINING
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.example import Example

TEACHER = "teacher"
FILE = "teacher.jsonl"


def teacher_answers(dataset: Path, examples: Sequence[Example], settings: EvaluateSettings) -> list[Prediction]:
    """Read the teacher's answers to these examples. There are none for training questions.

    Raises:
        InputError: the file cannot be used, or the gate needs the teacher and it answered none of the gate's questions.
    """
    path = dataset / FILE
    if settings.questions == TRAINING or not path.is_file():
        _check_gate(settings, f"{path} is missing", [])
        return []
    read = read_predictions(path)
    gated = [example for example in examples if settings.gate_split in ("", example.split)]
    _check_gate(settings, f"{path} has no answers to the gate's questions", _answers_to(gated, read))
    answers = _answers_to(examples, read)
    if not answers:
        console.warning(f"{path} has no answers to the questions that are asked")
    return answers


def _answers_to(examples: Sequence[Example], answers: Sequence[Prediction]) -> list[Prediction]:
    """The answers to these examples, matched by database, question and gold query.

    If several examples are equal, at most as many answers are taken as there are such examples.
    """
    asked = Counter((example.db_id, example.question, example.sql) for example in examples)
    keyed = zip(question_keys(answers), answers, strict=True)
    return [answer for (db_id, question, gold, number), answer in keyed if number < asked[db_id, question, gold]]


def _check_gate(settings: EvaluateSettings, problem: str, answers: Sequence[Prediction]) -> None:
    """Fail early if the gate needs the teacher's answers, before a model is loaded."""
    if settings.gate_teacher is not None and not answers:
        raise InputError(
            f"evaluate.gate_teacher is set, but the dataset lacks the teacher's answers: {problem}; "
            "set distill.score_teacher, or leave gate_teacher empty"
        )
