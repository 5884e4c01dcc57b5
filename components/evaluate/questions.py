"""The questions of a dataset that the models are asked."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.sampling import sample, spread
from chatmetrics.components.evaluate.score import missing_databases
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.databases import Databases
from chatmetrics.components.nl2sql.example import Example, read_examples

TRAINING = "train"


def load_questions(
    dataset: Path, databases: Databases, settings: EvaluateSettings
) -> tuple[list[Example], dict[str, int]]:
    """The examples to ask, whose database is there, and for every missing one how many questions are not asked.

    Of training examples that share a question only the first is asked.

    Raises:
        InputError: the file or all databases cannot be used, no questions are left, or none is in the gate's split.
    """
    path = dataset / f"{settings.questions}.jsonl"
    questions = read_examples(path)
    if settings.questions == TRAINING:
        questions = _one_of_each(questions)
    missing = missing_databases(databases, [example.db_id for example in questions])
    warn_missing(missing)
    answerable = [example for example in questions if example.db_id not in missing]
    examples = spread(sample(answerable, lambda example: example.sql, settings.sample, settings.seed), settings.limit)
    if not examples:
        raise InputError(f"{path.name} has no questions: nothing can be evaluated")
    _check_gate(examples, settings)
    return examples, missing


def settings_for_questions(settings: EvaluateSettings) -> EvaluateSettings:
    """The settings without what makes no sense of questions that were trained on: gate and acceptance test."""
    if settings.questions != TRAINING:
        return settings
    left_out = {"gate": 0.0, "gate_split": "", "gate_teacher": None, "acceptance_test_questions": 0}
    return settings.model_copy(update=left_out)


def load_training_data(dataset: Path, settings: EvaluateSettings) -> TrainingData | None:
    """What was trained on, to tell what was seen; None where the dataset lacks it, or where just that is asked."""
    path = dataset / f"{TRAINING}.jsonl"
    return TrainingData.read(path) if path.is_file() and settings.questions != TRAINING else None


def warn_missing(missing: Mapping[str, int]) -> None:
    """Print which questions are left out."""
    for db_id, count in missing.items():
        said = f"warning: {count} questions are left out: the database {db_id!r} is missing"
        print(said, file=sys.stderr, flush=True)


def _one_of_each(examples: Iterable[Example]) -> list[Example]:
    first: dict[tuple[str, str], Example] = {}
    for example in examples:
        first.setdefault((example.db_id, example.question), example)
    return list(first.values())


def _check_gate(examples: Sequence[Example], settings: EvaluateSettings) -> None:
    """Fail before a model is loaded, not after an hour of questions."""
    splits = {example.split for example in examples}
    if settings.gate_split and settings.gate_split not in splits:
        raise InputError(f"gate_split: no question is in '{settings.gate_split}', only in {', '.join(sorted(splits))}")
