"""The acceptance test published with a student: drawn from its dev questions, independently of its answers."""

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from chatmetrics.components import console
from chatmetrics.components.evaluate.private_values import (
    PrivateValueError,
    names_private,
    remove_private_values,
)
from chatmetrics.components.evaluate.sampling import spread
from chatmetrics.components.evaluate.score import Item
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.acceptance_test import (
    AcceptanceScore,
    AcceptanceTest,
    Question,
    run_acceptance_test,
)
from chatmetrics.components.nl2sql.databases.addresses import is_address
from chatmetrics.components.nl2sql.databases.databases import Databases
from chatmetrics.components.nl2sql.databases.execution import MEBIBYTE, Executor, FailureMode, database_path
from chatmetrics.components.nl2sql.descriptions import ColumnNames, Descriptions
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate
from chatmetrics.components.nl2sql.published_schema import PublishedSchema
from chatmetrics.components.nl2sql.verdict import Execute
from chatmetrics.components.storage.files import disk_errors, sha256_of
from chatmetrics.components.storage.folder import atomic_folder

FOLDER = "acceptance_test"
MAX_MEBIBYTES = 20  # total size of the databases, which every new pod fetches
GOLD_SECONDS = 1.0  # a gold query that takes longer here could time out on a slower machine
HASH_DIGITS = 12
NAME_CHARACTERS = 64


def draw_acceptance_test(
    examples: Sequence[Example],
    items: Sequence[Item],
    student: str,
    databases: str,
    settings: EvaluateSettings,
    output: Path,
    template: PromptTemplate,
    known: Mapping[str, Descriptions] = MappingProxyType({}),
    opened: Databases | None = None,
) -> AcceptanceScore | None:
    """Draw an acceptance test, write it with its databases to `output`/acceptance_test, and score the student.

    The questions are those of the gate's split whose gold queries return rows. They are spread evenly over query types
    and databases, independently of the verdicts. The smallest databases are used, up to 20 MiB in total. Drawing is
    deterministic: equal scores give equal bytes. Of databases on servers, the schemas are written.

    Values of private columns are removed from the databases, and questions whose gold queries use these columns, or
    return other rows without the values, are not drawn. A database from which they cannot be removed is left out with
    a warning.

    Args:
        examples: all questions that were asked.
        items: their scores, in the same order.
        student: the system whose answers are scored.
        databases: a folder of SQLite files, or the address of databases, which cannot be copied: their schemas are
            written instead.
        settings: number of questions, threshold, the gate's split and the length of an answer.
        output: the report's folder; an earlier acceptance test in it is replaced.
        template: the template of the student's prompts.
        known: private columns, by database.
        opened: the databases at an address.

    Returns:
        The student's score; None if the settings ask for no questions, or if no acceptance test is possible, which is
        logged.

    Raises:
        StorageError: the disk is full or not writable.
    """
    folder = output / FOLDER
    with disk_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
    if not settings.acceptance_test_questions:
        return None
    private = {item.db_id: known.get(item.db_id, Descriptions()).private_columns for item in items}
    usable = {
        example.id: (example, item)
        for example, item in zip(examples, items, strict=True)
        if _is_usable(item, settings.gate_split) and not names_private(example.sql, private[example.db_id])
    }
    asked = {example.db_id for example, _ in usable.values()}
    if opened and is_address(databases):
        published = _Published(schemas={db_id: PublishedSchema.of(opened.structure(db_id)) for db_id in sorted(asked)})
        # What cannot be checked by its text is not asked, because the pod may have no such database.
        usable = {id: found for id, found in usable.items() if not published.problem(found[0])}
        served = {db_id: partial(opened.execute, db_id) for db_id in asked}
        return _written(usable, published, student, settings, folder, template, served)
    with TemporaryDirectory(prefix="acceptance-") as copies:
        given = _smallest({db_id: database_path(Path(databases), db_id) for db_id in asked})
        files = _without_private(given, private, Path(copies))
        with Executor(GOLD_SECONDS) as executor:
            usable = {
                id: found
                for id, found in usable.items()
                if _has_same_rows(executor, found[0].sql, given.get(found[0].db_id), files.get(found[0].db_id))
            }
        return _written(usable, _Published(files), student, settings, folder, template)


def _has_same_rows(executor: Executor, sql: str, given: Path | None, published: Path | None) -> bool:
    """Whether a query does not show, or depend on, what was removed from the published file."""
    if given is None or published is None:
        return False
    if given == published:
        return True
    first, second = executor.execute(given, sql), executor.execute(published, sql)
    return first.failure == second.failure == FailureMode.OK and first.rows == second.rows


@dataclass(frozen=True, slots=True)
class _Published:
    """What is published of the databases: the files, or the schemas of those on servers. The first are preferred."""

    files: Mapping[str, Path] = field(default_factory=dict)
    schemas: Mapping[str, PublishedSchema] = field(default_factory=dict)

    def problem(self, example: Example) -> str:
        """What is wrong with a gold query as far as its text tells; "" if nothing is."""
        return self.schemas[example.db_id].problem(example.sql)


def _without_private(files: Mapping[str, Path], private: Mapping[str, ColumnNames], folder: Path) -> dict[str, Path]:
    """The files, or copies of them without the values of private columns."""
    kept = {}
    for number, (db_id, path) in enumerate(files.items()):
        if not private[db_id]:
            kept[db_id] = path
            continue
        copy = folder / f"{number}.sqlite"
        with disk_errors(copy):
            shutil.copyfile(path, copy)
        try:
            remove_private_values(copy, private[db_id])
            kept[db_id] = copy
        except PrivateValueError as error:
            console.warning(f"the acceptance test has no question about {db_id}, which has private columns: {error}")
    return kept


def _written(
    usable: Mapping[str, tuple[Example, Item]],
    published: _Published,
    student: str,
    settings: EvaluateSettings,
    folder: Path,
    template: PromptTemplate,
    served: Mapping[str, Execute] = MappingProxyType({}),
) -> AcceptanceScore | None:
    ranked = [*published.files, *published.schemas]
    drawn = _draw([example for example, _ in usable.values()], ranked, settings.acceptance_test_questions)
    if not drawn:
        console.info(
            f"no acceptance test: no question has a gold query that returns rows within {GOLD_SECONDS:g} s "
            f"and a database of at most {MAX_MEBIBYTES} MiB"
        )
        return None
    with atomic_folder(folder) as unfinished:
        acceptance_test = _write(drawn, published, settings, unfinished, template)
        score = run_acceptance_test(
            acceptance_test,
            unfinished,
            lambda question: usable[question.id][1].answers[student].prediction.predicted,
            served=served,
        )
    if not score.passed:
        console.warning(
            f"the student fails its acceptance test, {score.summary()}. The served model would never "
            "become ready: lower evaluate.acceptance_test_threshold or train longer"
        )
    return score


def _is_usable(item: Item, split: str) -> bool:
    """Whether a question can be drawn. An empty gold result is excluded, since wrong queries often return it too."""
    is_of_gate = split in ("", item.split) and not item.held_out
    return item.scored and item.gold.row_count > 0 and item.gold.seconds <= GOLD_SECONDS and is_of_gate


def _smallest(files: dict[str, Path]) -> dict[str, Path]:
    """The smallest databases, as many as fit into the size limit."""
    kept, left = {}, MAX_MEBIBYTES * MEBIBYTE
    for size, db_id, path in sorted((path.stat().st_size, db_id, path) for db_id, path in files.items()):
        left -= size
        if left >= 0:
            kept[db_id] = path
    return kept


def _draw(examples: Sequence[Example], db_ids: Sequence[str], number: int) -> list[Example]:
    """Draw questions about these databases.

    The questions are sorted by query type, then by database, then by a hash of the id, and every n-th one is taken.
    """
    rank = {db_id: number for number, db_id in enumerate(db_ids)}
    ordered = sorted(
        (example for example in examples if example.db_id in rank),
        key=lambda example: (example.query_type, rank[example.db_id], _digits(example.id.encode())),
    )
    return spread(ordered, number)


def _write(
    drawn: Sequence[Example],
    published: _Published,
    settings: EvaluateSettings,
    folder: Path,
    template: PromptTemplate,
) -> AcceptanceTest:
    db_ids = sorted({example.db_id for example in drawn})
    files = {db_id: published.files[db_id] for db_id in db_ids if db_id in published.files}
    names = {db_id: f"{_file_name(db_id)}-{sha256_of(path)[:HASH_DIGITS]}.sqlite" for db_id, path in files.items()}
    acceptance_test = AcceptanceTest(
        threshold=settings.acceptance_test_threshold,
        max_tokens=settings.max_tokens,
        prompt_template=template.text,
        databases=names,
        schemas={db_id: published.schemas[db_id] for db_id in db_ids if db_id not in files},
        questions=tuple(
            Question(**{name: getattr(example, name) for name in Question.model_fields}) for example in drawn
        ),
    )
    # Without what is the default, so that the files of models with DeepSeek's template stay the same.
    content = acceptance_test.model_dump_json(indent=2, exclude_defaults=True).encode()
    with disk_errors(folder):
        (folder / f"acceptance_test-{_digits(content)}.json").write_bytes(content)
        for db_id, name in names.items():
            shutil.copyfile(files[db_id], folder / name)
    return acceptance_test


def _file_name(db_id: str) -> str:
    """A database's name in characters that stores and manifests accept, beginning with a letter or digit."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", db_id)[:NAME_CHARACTERS].strip("-._") or "database"


def _digits(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
