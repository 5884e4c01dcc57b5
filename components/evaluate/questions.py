"""The questions of a dataset that the models are asked."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.judge import Reason
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.sampling import sample, spread
from chatmetrics.components.evaluate.score import Missing, MissingDatabase, missing_databases
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.databases.databases import Databases
from chatmetrics.components.nl2sql.example import Example, read_examples, read_held_out
from chatmetrics.components.nl2sql.prompts.few_shot import Choose, shots_from

TRAINING = "train"
DROPPED = "dropped by preprocess"


@dataclass(frozen=True)
class NotAsked:
    """Questions of a dataset that no model is asked.

    Attributes:
        counts: their number, by reason and split.
        available: number of the other questions by split, of which a sample may be drawn.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    available: Counter[str] = field(default_factory=Counter)

    @property
    def splits(self) -> list[str]:
        """The splits of all these questions, in their order."""
        return list(dict.fromkeys([*self.available, *(split for _, split in self.counts)]))


@dataclass(frozen=True)
class Questions:
    """What to ask, and what not.

    Attributes:
        examples: the examples to ask.
        missing: the databases that are missing or cannot be read.
        not_asked: the number of questions that no model is asked.
        not_drawn: the examples that a sample or a limit leaves out.
        held_out: the examples to ask of each held-out set; they are not among `examples`.
        held_out_not_asked: the number of questions of these sets that no model is asked.
    """

    examples: list[Example]
    missing: Missing
    not_asked: NotAsked
    not_drawn: list[Example]
    held_out: dict[str, list[Example]]
    held_out_not_asked: NotAsked

    def all(self, limit: int = 0) -> list[Example]:
        """The examples to ask with those of the held-out sets; of each at most `limit`, 0 for all."""
        return [example for part in (self.examples, *self.held_out.values()) for example in spread(part, limit)]


def load_questions(dataset: Path, databases: Databases, settings: EvaluateSettings) -> Questions:
    """Read the examples to ask.

    Examples whose database is missing or cannot be read are skipped. Of training examples with the same question, only
    the first is asked. The sample and the limit are drawn from each held-out set as from the dev questions, so that
    adding a set changes no other number. No held-out set is asked together with training questions.

    Raises:
        InputError: the file or no database can be used, no questions are left, or none is in the gate's split.
    """
    path = dataset / f"{settings.questions}.jsonl"
    questions = read_examples(path)
    if settings.questions == TRAINING:
        questions = _distinct(questions)
    held_out = read_held_out(dataset) if settings.questions != TRAINING else []
    missing = missing_databases(databases, [example.db_id for example in (*questions, *held_out)])
    warn_missing(missing)
    answerable = [example for example in questions if example.db_id not in missing]
    examples = _drawn(answerable, settings)
    if not examples:
        raise InputError(f"{path.name} has no questions to evaluate")
    _check_gate(examples, settings)
    drawn = {example.id for example in examples}
    sets: dict[str, list[Example]] = {}
    for example in held_out:
        sets.setdefault(example.split, []).append(example)
    dropped, names = _dropped_and_sets(dataset)
    dropped = [split for split in dropped if (split == TRAINING) == (settings.questions == TRAINING)]
    names |= sets.keys()
    return Questions(
        examples,
        missing,
        _not_asked(questions, missing, [split for split in dropped if split not in names]),
        [example for example in answerable if example.id not in drawn],
        {
            name: _drawn([example for example in found if example.db_id not in missing], settings, at_most=True)
            for name, found in sets.items()
        },
        _not_asked(held_out, missing, [split for split in dropped if split in names]),
    )


def settings_for_questions(settings: EvaluateSettings) -> EvaluateSettings:
    """The settings for these questions.

    There is no gate and no acceptance test for training questions, and for a student that is asked otherwise than when
    it is served: with few-shot prompts or a grammar.
    """
    is_few_shot = settings.few_shot and settings.few_shot_for != "base"
    if is_few_shot:
        console.note("the served student gets no few-shot prompts: its accuracy here has no gate and acceptance test")
    if settings.grammar != "none":
        console.note("the served student has no grammar: its accuracy here has no gate and acceptance test")
    if settings.questions != TRAINING and not is_few_shot and settings.grammar == "none":
        return settings
    left_out = {"gate": 0.0, "gate_split": "", "gate_teacher": None, "acceptance_test_questions": 0}
    return settings.model_copy(update=left_out)


def load_training_data(dataset: Path, settings: EvaluateSettings) -> TrainingData | None:
    """The dataset's training data, to find questions seen in training; None if it is missing or is what is asked."""
    path = dataset / f"{TRAINING}.jsonl"
    return TrainingData.read(path) if path.is_file() and settings.questions != TRAINING else None


def few_shot_for(system: str, dataset: Path, settings: EvaluateSettings) -> Choose:
    """The function that chooses the questions that a system's prompts show; it chooses none if they show none.

    Args:
        system: "student", "base" or, for any other model, another name.
        dataset: folder with train.jsonl.
        settings: number and choice of the questions, and the systems.

    Raises:
        InputError: there are too few training questions.
    """
    if not _has_few_shot(system, settings):
        return lambda example: ()
    training = read_examples(dataset / f"{TRAINING}.jsonl")
    return shots_from(training, settings.few_shot, settings.few_shot_choice, settings.seed)


def few_shot_sentence(systems: Iterable[str], settings: EvaluateSettings) -> str:
    """Which systems' prompts show training questions, in words; empty if none do."""
    found = [system for system in systems if _has_few_shot(system, settings)]
    how = "drawn at random" if settings.few_shot_choice == "random" else "similar to the question"
    shown = f"up to {settings.few_shot} training questions with their SQL, {how}"
    return f"prompts of {' and '.join(found)} show {shown}" if found else ""


def _has_few_shot(system: str, settings: EvaluateSettings) -> bool:
    other = {"base": "student", "student": "base"}.get(settings.few_shot_for)
    return settings.few_shot > 0 and system != other


def warn_missing(missing: Missing) -> None:
    """Warn of questions that are skipped because their database is missing or cannot be read."""
    for db_id, (count, problem) in missing.items():
        why = f"cannot be read: {count} ({problem})" if problem else f"is missing: {count}"
        console.warning(f"questions skipped because the database {db_id!r} {why}")


def questions_that_chose(adapter: Path) -> frozenset[str]:
    """The ids of the dev questions by which early stopping chose an adapter. Their scores favor it.

    Args:
        adapter: the folder that train wrote; without a run.json there are none.

    Raises:
        InputError: run.json cannot be read.
    """
    path = adapter / "run.json"
    if not path.is_file():
        console.warning(f"{path} is missing: if dev questions chose the adapter, they count for the gate")
        return frozenset()
    try:
        early_stopping = json.loads(path.read_bytes()).get("early_stopping")
        if not early_stopping:
            return frozenset()
        if "questions" not in early_stopping:
            console.warning(f"{path} does not name the dev questions that chose the adapter: they count for the gate")
        return frozenset(map(str, early_stopping.get("questions", ())))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name the adapter folder that train wrote") from error


def _reason(database: MissingDatabase) -> str:
    return (Reason.BROKEN_DATABASE if database.problem else Reason.NO_DATABASE).value


def _not_asked(examples: Sequence[Example], missing: Missing, dropped: Iterable[str]) -> NotAsked:
    unusable = (example for example in examples if example.db_id in missing)
    counts = Counter((_reason(missing[example.db_id]), example.split) for example in unusable)
    counts += Counter((DROPPED, split) for split in dropped)
    return NotAsked(counts, Counter(example.split for example in examples if example.db_id not in missing))


def _dropped_and_sets(dataset: Path) -> tuple[list[str], set[str]]:
    """The splits of the questions that preprocess dropped, and the names of the held-out sets.

    Both are by the dataset's card; empty for a dataset that another program wrote. A question is dropped, for example,
    because it is too long.
    """
    from chatmetrics.components.storage.dataset_databases import CARD

    path = dataset / CARD
    if not path.is_file():
        return [], set()
    try:
        card = json.loads(path.read_bytes())
        return [str(dropped["split"]) for dropped in card.get("dropped", ())], set(card.get("held_out", {}))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        console.warning(f"{path} does not tell which questions preprocess dropped ({type(error).__name__}: {error})")
        return [], set()


def _drawn(examples: Sequence[Example], settings: EvaluateSettings, at_most: bool = False) -> list[Example]:
    drawn = sample(examples, lambda example: example.sql, settings.sample, settings.seed, at_most)
    return spread(drawn, settings.limit)


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
