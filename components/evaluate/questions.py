"""The questions of a dataset that the models are asked."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.sampling import sample, spread
from chatmetrics.components.evaluate.score import Missing, missing_databases
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.databases import Databases
from chatmetrics.components.nl2sql.example import Example, read_examples

TRAINING = "train"


def load_questions(dataset: Path, databases: Databases, settings: EvaluateSettings) -> tuple[list[Example], Missing]:
    """Read the examples to ask.

    Examples whose database is missing or cannot be read are skipped. Of training examples with the same question, only
    the first is asked.

    Returns:
        The examples, and the databases whose questions are skipped.

    Raises:
        InputError: the file or no database can be used, no questions are left, or none is in the gate's split.
    """
    path = dataset / f"{settings.questions}.jsonl"
    questions = read_examples(path)
    if settings.questions == TRAINING:
        questions = _distinct(questions)
    missing = missing_databases(databases, [example.db_id for example in questions])
    warn_missing(missing)
    answerable = [example for example in questions if example.db_id not in missing]
    examples = spread(sample(answerable, lambda example: example.sql, settings.sample, settings.seed), settings.limit)
    if not examples:
        raise InputError(f"{path.name} has no questions to evaluate")
    _check_gate(examples, settings)
    return examples, missing


def settings_for_questions(settings: EvaluateSettings) -> EvaluateSettings:
    """The settings for these questions: training questions have no gate and no acceptance test."""
    if settings.questions != TRAINING:
        return settings
    left_out = {"gate": 0.0, "gate_split": "", "gate_teacher": None, "acceptance_test_questions": 0}
    return settings.model_copy(update=left_out)


def load_training_data(dataset: Path, settings: EvaluateSettings) -> TrainingData | None:
    """The dataset's training data, to find questions seen in training; None if it is missing or is what is asked."""
    path = dataset / f"{TRAINING}.jsonl"
    return TrainingData.read(path) if path.is_file() and settings.questions != TRAINING else None


def warn_missing(missing: Missing) -> None:
    """Warn of questions that are skipped because their database is missing or cannot be read."""
    for db_id, (count, problem) in missing.items():
        why = f"cannot be read: {count} ({problem})" if problem else f"is missing: {count}"
        console.warning(f"questions skipped because the database {db_id!r} {why}")


def _distinct(examples: Iterable[Example]) -> list[Example]:
    """The first example of each question about each database."""
    first: dict[tuple[str, str], Example] = {}
    for example in examples:
        first.setdefault((example.db_id, example.question), example)
    return list(first.values())


def _check_gate(examples: Sequence[Example], settings: EvaluateSettings) -> None:
    """Fail early if the gate's split has no questions, before a model is loaded."""
    splits = {example.split for example in examples}
    if settings.gate_split and settings.gate_split not in splits:
        raise InputError(
            f"gate_split: the split '{settings.gate_split}' has no questions; choose one of {', '.join(sorted(splits))}"
        )
