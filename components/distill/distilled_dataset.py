"""The dataset folder that a student learns from: the old one, with the teacher's samples as its training examples."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from chatmetrics.components.distill.answers.selection import Selected
from chatmetrics.components.distill.answers.verified import SampleAccuracy, SampleCounts
from chatmetrics.components.distill.synthesis.one_database import DatabaseReport
from chatmetrics.components.distill.teacher.ledger import Ledger
from chatmetrics.components.distill.teacher.spending import Spending
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example, write_examples
from chatmetrics.components.storage.dataset_databases import CARD
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.storage.folder import check_replaceable

CARD_FOR_PEOPLE = "dataset_card.md"
DISTILLATION = "distillation.json"
LEDGER = "ledger.jsonl"
TEACHER = "teacher.jsonl"  # evaluate looks for it


class Distillation(BaseModel):
    """What a teacher's answers became; distillation.json is this model.

    Attributes:
        teacher: its name.
        verification: "execution" or "none".
        round: number of the round.
        asked: questions that the teacher was asked in this round.
        examples: training examples by where their SQL is from: "gold", "teacher", "unlabeled questions", "synthesized".
        counts: what became of the samples to questions of the dataset and of the user's own.
        synthesized: the same of questions that were made up: of them those without a passing sample are left out.
        selected: what became of those that were chosen.
        coverage: what was made up, by database.
        not_sent: requests that the cap did not let out.
        unanswered: requests without an answer, by reason.
        spending: what was paid, over all runs.
    """

    teacher: str
    verification: str
    round: int
    asked: int
    examples: dict[str, int]
    counts: SampleCounts
    synthesized: SampleCounts | None
    selected: Selected
    coverage: dict[str, DatabaseReport]
    not_sent: int
    unanswered: dict[str, int]
    spending: Spending

    @property
    def summary(self) -> str:
        """One line: how many samples passed, what is trained on, what it cost."""
        made_of = ", ".join(f"{count} {name}" for name, count in self.examples.items() if count)
        counts = self.counts
        return (
            f"{counts.passing} of {counts.samples} samples pass, for {counts.passing_questions} of {counts.questions} "
            f"questions; training examples: {made_of or 'none'}; {self.spending.sentence}"
        )

    def markdown(self) -> str:
        """The section of the dataset card."""
        rejected = {**self.counts.rejected, **{f"no answer: {reason}": n for reason, n in self.unanswered.items()}}
        if self.not_sent:
            rejected["not sent: the cap was reached"] = self.not_sent
        spending = self.spending
        return "\n\n".join(
            [
                f"## Distillation: {self.teacher}, round {self.round}",
                f"{self.summary}.",
                _table(("training examples", "number"), self.examples.items()),
                _table(("samples that do not pass", "number"), rejected.items()),
                _table(("questions without a passing sample", "number"), self.counts.reasons.items()),
                _table(("the teacher on training questions", "right", "of", "share"), _shares(self.counts.accuracy)),
                *self._made_up(),
                *self._reasoning(),
                _table(
                    ("spent", spending.currency),
                    [*((name, f"{cost:.2f}") for name, cost in spending.cost_by_purpose.items())],
                ),
            ]
        )

    def _reasoning(self) -> list[str]:
        """What became of reasoning that was to be trained on, and of samples that cannot be."""
        counts = {name.replace("_", " "): count for name, count in self.selected.model_dump().items() if count}
        return [_table(("chosen samples", "number"), counts.items())] if len(counts) > 1 else []

    def _made_up(self) -> list[str]:
        if not self.coverage:
            return []
        rows = [
            (name, found.wanted, found.questions, _counted(found.by_query_type), _counted(found.rejected))
            for name, found in self.coverage.items()
        ]
        return [_table(("database", "wanted", "generated", "by query type", "rejected"), rows)]


def check_output(output: Path, dataset: Path) -> None:
    """Refuse an output that would replace something else than an older lesson.

    Raises:
        InputError: it is the dataset itself, a file, or a folder of something else.
    """
    if output.resolve() == dataset.resolve():
        raise InputError(f"{output}: is the dataset itself, whose gold queries are needed again; give another folder")
    check_replaceable(output, CARD, "a dataset")


def write_distilled_dataset(
    folder: Path,
    dataset: Path,
    train: Sequence[Example],
    dev: Sequence[Example],
    teacher: Sequence[dict[str, Any]],
    distillation: Distillation,
    ledger: Ledger,
) -> None:
    """Fill an empty folder: the dataset's files, the new examples, the card with what was done, and the ledger.

    Args:
        folder: the empty one.
        dataset: that preprocess wrote.
        train: what the student learns.
        dev: what it is examined in.
        teacher: the teacher's predictions for dev questions; no file without any.
        distillation: what was done.
        ledger: for ledger.jsonl.

    Raises:
        InputError: the dataset's card is none.
        StorageError: the disk refused.
    """
    with disk_errors(folder):
        shutil.copytree(dataset, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", TEACHER))
        write_examples(folder / "train.jsonl", train)
        write_examples(folder / "dev.jsonl", dev)
        if teacher:
            _write_lines(folder / TEACHER, teacher)
        card = read_card(dataset)
        card["splits"] = _splits([*train, *dev])
        card["distillation"] = distillation.model_dump(mode="json")
        (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / DISTILLATION).write_text(distillation.model_dump_json(indent=2) + "\n", encoding="utf-8")
        with (folder / CARD_FOR_PEOPLE).open("a", encoding="utf-8") as people:
            people.write(f"\n{distillation.markdown()}\n")
    ledger.export(folder / LEDGER)


def read_card(dataset: Path) -> dict[str, Any]:
    """The card that preprocess wrote.

    Raises:
        InputError: there is none.
    """
    path = dataset / CARD
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a dataset card ({error}); give a folder of preprocess") from error


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def _splits(examples: Iterable[Example]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for example in examples:
        counts[example.split] = counts.get(example.split, 0) + 1
    return counts


def _shares(accuracy: dict[str, SampleAccuracy]) -> list[tuple[object, ...]]:
    return [(name, a.right, a.compared, f"{a.right / a.compared:.1%}") for name, a in accuracy.items() if a.compared]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count) or "none"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows]
    if not lines:
        return f"({header[0]}: none)"
    return "\n".join([f"| {' | '.join(header)} |", "|" + "---|" * len(header), *lines])
