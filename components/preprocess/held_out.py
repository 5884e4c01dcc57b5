"""Named sets of questions that are scored on and never trained on: Spider-Syn, Spider-DK, KaggleDBQA, your own."""

import filecmp
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.execution import database_path
from chatmetrics.components.nl2sql.example import question_key
from chatmetrics.components.preprocess.readers import (
    DEV_ARRAY,
    OWN_FIELDS,
    TEST_ARRAY,
    TRAIN,
    Fields,
    Record,
    Source,
    check_ids,
    read_records_of,
    read_tables,
    sample,
)
from chatmetrics.components.preprocess.settings import HeldOutSettings, PreprocessSettings

# Folders of databases next to questions: Spider's and KaggleDBQA's, BIRD's, and those of Spider's test questions.
FOLDERS = ("database", "databases", "dev_databases", "test_database")
TEST_FOLDER = "test_database"


def with_held_out(source: Source, settings: PreprocessSettings) -> Source:
    """Add the recipe's held-out sets to a source, and remove their questions from its training questions.

    The questions of a set have the set's name as their split.

    Raises:
        InputError: a set's file is missing or malformed, a database is missing, or two databases have one name.
    """
    for name, held_out in settings.held_out.items():
        if taken := next((record for record in source.records if record.split == name), None):
            raise InputError(f"{taken.where}: has the split {name!r} too; rename preprocess.held_out.{name}")
        source = _with_set(source, name, held_out, settings)
    check_ids(source.records)
    return _without_training_on(source, settings.held_out)


def question_files(path: Path) -> list[Path]:
    """The files with a set's questions: the file itself; in a folder its dev.json, test.json or *_test.json.

    Raises:
        InputError: the path does not exist, or it is not clear which file of the folder is meant.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    found = [file for name in (DEV_ARRAY, TEST_ARRAY) if (file := path / name).is_file()]
    found = found or sorted(path.glob("*_test.json"))
    if len(found) > 1 and found[0].name == DEV_ARRAY:
        raise InputError(f"{path}: has {found[0].name} and {found[1].name}; name one of the files")
    if not found:
        raise InputError(f"{path}: has no {DEV_ARRAY}, {TEST_ARRAY} or *_test.json; name the file with the questions")
    return found


def folder_of_databases(questions: Path, databases: str) -> Path:
    """The folder of a set's own databases: in the folder given, next to its questions, or one level above."""
    places = [Path(databases).expanduser()] if databases else [questions.parent, questions.parent.parent]
    names = sorted(FOLDERS, key=lambda name: name != TEST_FOLDER) if questions.name == TEST_ARRAY else FOLDERS
    found = (path for place in places for name in names if (path := place / name).is_dir())
    return next(found, places[0]).absolute()


def _with_set(source: Source, name: str, held_out: HeldOutSettings, settings: PreprocessSettings) -> Source:
    key = f"preprocess.held_out.{name}"
    try:
        files = question_files(Path(held_out.source).expanduser())
    except InputError as error:
        raise InputError(f"{error}; check {key}") from error
    fields = Fields({**OWN_FIELDS, **{field: (column,) for field, column in held_out.fields.items()}}, f"{key}.fields")
    records = [
        replace(record, id=f"{name}/{record.id}", split=name)
        for file in files
        for record in read_records_of(file, name, fields)
    ]
    if not records:
        raise InputError(f"{held_out.source}: contains no questions; check {key}")
    folder = folder_of_databases(files[0], held_out.databases)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check {key}.databases")
    tables = _tables(files[0], folder)
    own, described = dict(source.held_out_databases), dict(source.tables)
    for db_id in dict.fromkeys(record.db_id for record in records):
        known = _path(source.folder_of(db_id), db_id)
        if _is_own(key, _path(folder, db_id), known):
            own[db_id] = folder
        if db_id in tables and not known:
            described.setdefault(db_id, tables[db_id])
    drawn = sample(records, settings.limit, settings.seed)
    return replace(source, records=[*source.records, *drawn], held_out_databases=own, tables=described)


def _is_own(key: str, found: Path | None, known: Path | None) -> bool:
    """Whether only the set has a database."""
    if found and known and not filecmp.cmp(found, known, shallow=False):
        raise InputError(
            f"{key}: {found} and {known} are different databases with the name {found.stem!r}; rename one of them"
        )
    return found is not None and known is None


def _tables(questions: Path, databases: Path) -> Mapping[str, Mapping[str, Any]]:
    """The entries of the tables files next to the questions or the databases, such as KaggleDBQA_tables.json."""
    entries: dict[str, Mapping[str, Any]] = {}
    for path in tables_files(questions, databases):
        entries = {**read_tables(path), **entries}
    return entries


def tables_files(questions: Path, databases: Path) -> Iterator[Path]:
    """The tables files of a set. Those of Spider's test questions come first where its test questions are meant."""
    folders = dict.fromkeys((questions.parent, questions.parent.parent, databases.parent))
    for folder in folders:
        found = sorted(folder.glob("*tables.json"))
        is_test = questions.name == TEST_ARRAY
        yield from sorted(found, key=lambda path: path.name.startswith("test") != is_test)


def _path(folder: Path, db_id: str) -> Path | None:
    try:
        return database_path(folder, db_id)
    except InputError:
        return None  # `Source.database` reports what is missing everywhere


def _without_training_on(source: Source, sets: Mapping[str, HeldOutSettings]) -> Source:
    """Leave out training questions that a set has too."""
    held_out = {
        question_key(record.db_id, record.question): record.split for record in source.records if record.split in sets
    }
    kept: list[Record] = []
    left_out: list[Record] = []
    for record in source.records:
        is_trained = record.split == TRAIN and question_key(record.db_id, record.question) in held_out
        (left_out if is_trained else kept).append(record)
    if left_out:
        first = left_out[0]
        console.warning(
            f"preprocess: {len(left_out)} training questions are left out, because a held-out set has them; for "
            f"example {first.where} is in {held_out[question_key(first.db_id, first.question)]}"
        )
    return replace(source, records=kept)
