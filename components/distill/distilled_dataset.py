"""Writes the dataset that the student is trained on: a copy of the input dataset with the teacher's answers."""

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
from chatmetrics.components.markdown import markdown_table, markdown_text
from chatmetrics.components.nl2sql.example import Example, read_held_out, write_examples
from chatmetrics.components.nl2sql.hub_card import write_hub_card
from chatmetrics.components.storage.dataset_databases import CARD
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.storage.folder import check_replaceable

CARD_FOR_PEOPLE = "dataset_card.md"
DISTILLATION = "distillation.json"
LEDGER = "ledger.jsonl"
TEACHER = "teacher.jsonl"  # read by evaluate


class Distillation(BaseModel):
    """Summary of one distillation, as written to distillation.json.

    Attributes:
        teacher: name of the teacher.
        verification: "execution" or "none".
        round: number of the round, from 1.
        asked: number of questions that the teacher was asked in this round.
        examples: number of training examples by the origin of their SQL: "gold", "teacher", "unlabeled questions" or
            "synthesized".
        counts: outcome of the samples for the dataset's questions and the unlabeled ones.
        synthesized: the same for generated questions; those without a passing sample are not trained on.
        selected: outcome of the samples that were chosen for training.
        coverage: the generated questions, by database.
        not_sent: number of requests that were not sent because a cap was reached.
        unanswered: number of requests without an answer, by reason.
        spending: cost of all runs so far.
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
        """One line: samples that pass, training examples, cost."""
        origins = ", ".join(f"{count} {name}" for name, count in self.examples.items() if count)
        counts = self.counts
        return (
            f"{counts.passing} of {counts.samples} samples pass, for {counts.passing_questions} of {counts.questions} "
            f"questions; training examples: {origins or 'none'}; {self.spending.sentence}"
        )

    def markdown(self) -> str:
        """A section for the dataset card."""
        rejected = {**self.counts.rejected, **{f"no answer: {reason}": n for reason, n in self.unanswered.items()}}
        if self.not_sent:
            rejected["not sent: cap reached"] = self.not_sent
        spending = self.spending
        return "\n\n".join(
            [
                f"## Distillation: {markdown_text(self.teacher)}, round {self.round}",
                f"{markdown_text(self.summary)}.",
                markdown_table(("training examples", "number"), self.examples.items()),
                markdown_table(("samples that do not pass", "number"), rejected.items()),
                markdown_table(("questions without a passing sample", "number"), self.counts.reasons.items()),
                markdown_table(
                    ("the teacher on training questions", "correct", "of", "accuracy"), _shares(self.counts.accuracy)
                ),
                *self._repaired(),
                *self._synthesis(),
                *self._reasoning(),
                markdown_table(
                    ("cost by purpose", spending.currency),
                    [*((name, f"{cost:.2f}") for name, cost in spending.cost_by_purpose.items())],
                ),
            ]
        )

    def _repaired(self) -> list[str]:
        counts = self.counts
        if not counts.repaired:
            return []
        return [f"Names were repaired in {counts.repaired} samples, of which {counts.repaired_passing} pass."]

    def _reasoning(self) -> list[str]:
        """How many chosen samples have their reasoning, and why others do not or were dropped."""
        counts = {name.replace("_", " "): count for name, count in self.selected.model_dump().items() if count}
        return [markdown_table(("chosen samples", "number"), counts.items())] if len(counts) > 1 else []

    def _synthesis(self) -> list[str]:
        if not self.coverage:
            return []
        rows = [
            (name, found.wanted, found.questions, _counted(found.by_query_type), _counted(found.rejected))
            for name, found in self.coverage.items()
        ]
        return [markdown_table(("database", "wanted", "generated", "by query type", "rejected"), rows)]


def check_output(output: Path, dataset: Path) -> None:
    """Refuse an output folder that is not an older dataset.

    Raises:
        InputError: the output is the input dataset, a file, or a folder with other content.
    """
    if output.resolve() == dataset.resolve():
        raise InputError(
            f"{output}: is the input dataset, whose gold queries are needed again; give another output folder"
        )
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
    """Write the dataset's files, the new examples, the extended card and the ledger to an empty folder.

    Args:
        folder: the empty folder.
        dataset: folder that preprocess wrote.
        train: training examples.
        dev: dev examples.
        teacher: the teacher's predictions for the dev questions; if empty, no file is written.
        distillation: summary for the card and distillation.json.
        ledger: exported as ledger.jsonl.

    Raises:
        InputError: the dataset's card cannot be read.
        StorageError: the folder cannot be written.
    """
    with disk_errors(folder):
        shutil.copytree(dataset, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", TEACHER))
        write_examples(folder / "train.jsonl", train)
        write_examples(folder / "dev.jsonl", dev)
        write_hub_card(folder)
        if teacher:
            _write_lines(folder / TEACHER, teacher)
        card = read_card(dataset)
        card["splits"] = _splits([*train, *dev, *read_held_out(dataset)])
        card["distillation"] = distillation.model_dump(mode="json")
        (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / DISTILLATION).write_text(distillation.model_dump_json(indent=2) + "\n", encoding="utf-8")
        with (folder / CARD_FOR_PEOPLE).open("a", encoding="utf-8") as people:
            people.write(f"\n{distillation.markdown()}\n")
    ledger.export(folder / LEDGER)


def read_card(dataset: Path) -> dict[str, Any]:
    """Read the dataset card that preprocess wrote.

    Raises:
        InputError: it is missing or invalid.
    """
    path = dataset / CARD
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read as a dataset card ({error}); give a folder that preprocess wrote"
        ) from error


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def _splits(examples: Iterable[Example]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for example in examples:
        counts[example.split] = counts.get(example.split, 0) + 1
    return counts


def _shares(accuracy: dict[str, SampleAccuracy]) -> list[tuple[object, ...]]:
    return [
        (name, found.correct, found.compared, f"{found.correct / found.compared:.1%}")
        for name, found in accuracy.items()
        if found.compared
    ]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count) or "none"
