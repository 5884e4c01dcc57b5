"""The acceptance test that goes along with a student: drawn from what it was scored on, whatever it answered."""

import hashlib
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from chatmetrics.components.evaluate.sampling import spread
from chatmetrics.components.evaluate.score import Item
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.acceptance_test import AcceptanceScore, AcceptanceTest, Question, run_acceptance_test
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.execution import MEBIBYTE, database_path
from chatmetrics.components.storage.files import disk_errors, sha256_of
from chatmetrics.components.storage.folder import atomic_folder

FOLDER = "acceptance_test"
MAX_MEBIBYTES = 20  # of all databases together: every new pod fetches them
GOLD_SECONDS = 1.0  # a gold query that is slow here would fail on a slower machine
HASH_DIGITS = 12
NAME_CHARACTERS = 64


def draw_acceptance_test(
    examples: Sequence[Example],
    items: Sequence[Item],
    student: str,
    databases: str,
    settings: EvaluateSettings,
    output: Path,
) -> AcceptanceScore | None:
    """Draw an acceptance test, write it with its databases into `output`/acceptance_test, and score the student.

    The questions are of the gate's split and spread evenly over query types and databases, the verdicts unseen; their
    gold queries return rows. The smallest databases are taken, 20 MiB at most. The same scores draw the same questions
    and write the same bytes.

    Args:
        examples: all that were asked.
        items: what became of them, in the same order.
        student: the system whose answers are marked.
        databases: a folder of SQLite files, or an SQLAlchemy URL, which cannot go along.
        settings: for the number of questions, the threshold, the gate's split and the length of an answer.
        output: the report's folder; an earlier acceptance test in it is replaced.

    Returns:
        The student's score; None where there is no acceptance test, because none is wanted or, as is printed, possible.

    Raises:
        StorageError: the disk refused.
    """
    folder = output / FOLDER
    with disk_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
    if not settings.acceptance_test_questions:
        return None
    if "://" in databases:
        _say("no acceptance test: the databases are on a server, and only SQLite files can go along")
        return None
    asked = zip(examples, items, strict=True)
    usable = {example.id: (example, item) for example, item in asked if _is_usable(item, settings.gate_split)}
    files = _smallest({example.db_id: database_path(Path(databases), example.db_id) for example, _ in usable.values()})
    drawn = _draw([example for example, _ in usable.values()], files, settings.acceptance_test_questions)
    if not drawn:
        _say(
            "no acceptance test: no question has a gold query that quickly returns rows "
            f"and a database of at most {MAX_MEBIBYTES} MiB"
        )
        return None
    with atomic_folder(folder) as unfinished:
        acceptance_test = _write(drawn, files, settings, unfinished)
        score = run_acceptance_test(
            acceptance_test, unfinished, lambda question: usable[question.id][1].answers[student].prediction.predicted
        )
    if not score.passed:
        _say(
            f"warning: the student fails its acceptance test, {score.summary()}. The served model would never "
            "become ready: lower evaluate.acceptance_test_threshold or train on"
        )
    return score


def _is_usable(item: Item, split: str) -> bool:
    """Whether a question may be drawn; where no rows are right, a wrong query is easily right too."""
    return item.scored and item.gold.row_count > 0 and item.gold.seconds <= GOLD_SECONDS and split in ("", item.split)


def _smallest(files: dict[str, Path]) -> dict[str, Path]:
    """The smallest databases, as many as are not too large together."""
    kept, left = {}, MAX_MEBIBYTES * MEBIBYTE
    for size, db_id, path in sorted((path.stat().st_size, db_id, path) for db_id, path in files.items()):
        left -= size
        if left >= 0:
            kept[db_id] = path
    return kept


def _draw(examples: Sequence[Example], files: dict[str, Path], number: int) -> list[Example]:
    """Questions on these databases, evenly spaced over query types and, within one, over databases; then by a hash."""
    rank = {db_id: number for number, db_id in enumerate(files)}
    ordered = sorted(
        (example for example in examples if example.db_id in rank),
        key=lambda example: (example.query_type, rank[example.db_id], _digits(example.id.encode())),
    )
    return spread(ordered, number)


def _write(
    drawn: Sequence[Example], files: dict[str, Path], settings: EvaluateSettings, folder: Path
) -> AcceptanceTest:
    db_ids = sorted({example.db_id for example in drawn})
    names = {db_id: f"{_file_name(db_id)}-{sha256_of(files[db_id])[:HASH_DIGITS]}.sqlite" for db_id in db_ids}
    acceptance_test = AcceptanceTest(
        threshold=settings.acceptance_test_threshold,
        max_tokens=settings.max_tokens,
        databases=names,
        questions=tuple(
            Question(**{name: getattr(example, name) for name in Question.model_fields}) for example in drawn
        ),
    )
    content = acceptance_test.model_dump_json(indent=2).encode()
    with disk_errors(folder):
        (folder / f"acceptance_test-{_digits(content)}.json").write_bytes(content)
        for db_id, name in names.items():
            shutil.copyfile(files[db_id], folder / name)
    return acceptance_test


def _file_name(db_id: str) -> str:
    """A database's name in letters that stores and manifests take, a letter or digit first."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", db_id)[:NAME_CHARACTERS].strip("-._") or "database"


def _digits(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
