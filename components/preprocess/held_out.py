"""Named sets of questions that are scored on and never trained on: Spider-Syn, Spider-DK, KaggleDBQA, your own."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.readers import (
    OWN_FIELDS,
    Fields,
    Record,
    Source,
    check_ids,
    read_records_of,
    read_tables,
)
from chatmetrics.components.preprocess.settings import HeldOutSettings, PreprocessSettings
from chatmetrics.components.preprocess.source_files import (
    held_out_databases,
    held_out_questions,
    held_out_tables,
    is_only_here,
    sqlite_file,
)
from chatmetrics.components.preprocess.splits import sample, without_scored


def with_held_out(source: Source, settings: PreprocessSettings) -> Source:
    """Add the recipe's held-out sets to a source, and remove their questions from its training questions.

    The questions of a set have the set's name as their split.

    Raises:
        InputError: a set's file is missing or malformed, a database is missing, or two databases have one name.
    """
    for name, held_out in settings.held_out.items():
        if taken := next((record for record in source.records if record.split == name), None):
            raise InputError(f"{taken.where}: has the split {name!r} too; rename preprocess.held_out.{name}")
        key = f"preprocess.held_out.{name}"
        files = _files(key, held_out)
        records = _records(key, name, files, held_out)
        source = _with_databases(source, key, files[0], held_out, records)
        # Also without questions of the set that are not drawn from it.
        kept = without_scored(source.records, records, "a held-out set has them")
        source = replace(source, records=[*kept, *sample(records, settings.limit, settings.seed)])
    check_ids(source.records)
    return source


def _files(key: str, held_out: HeldOutSettings) -> list[Path]:
    try:
        return held_out_questions(Path(held_out.source).expanduser())
    except InputError as error:
        raise InputError(f"{error}; check {key}") from error


def _records(key: str, name: str, files: Iterable[Path], held_out: HeldOutSettings) -> list[Record]:
    own: dict[str, tuple[str]] = {field: (column,) for field, column in held_out.fields.items()}
    fields = Fields({**OWN_FIELDS, **own}, f"{key}.fields")
    records = [
        replace(record, id=f"{name}/{record.id}", split=name)
        for file in files
        for record in read_records_of(file, name, fields)
    ]
    if not records:
        raise InputError(f"{held_out.source}: contains no questions; check {key}")
    return records


def _with_databases(
    source: Source, key: str, questions: Path, held_out: HeldOutSettings, records: Iterable[Record]
) -> Source:
    """Add the set's databases that the source does not have, and what its files of schemas know about them."""
    folder = held_out_databases(questions, held_out.databases)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check {key}.databases")
    tables = _tables(questions, folder)
    own, described = dict(source.held_out_databases), dict(source.tables)
    for db_id in dict.fromkeys(record.db_id for record in records):
        places = (source.folder_of(db_id), *source.more_folders)
        place = next((place for place in places if sqlite_file(place, db_id)), places[0])
        known = sqlite_file(place, db_id)
        if place != places[0]:
            own[db_id] = place
        if is_only_here(key, sqlite_file(folder, db_id), known):
            own[db_id] = folder
        if db_id in tables and not known:
            described.setdefault(db_id, tables[db_id])
    return replace(source, held_out_databases=own, tables=described)


def _tables(questions: Path, databases: Path) -> Mapping[str, Mapping[str, Any]]:
    """The entries of the tables files next to the questions or the databases, such as KaggleDBQA_tables.json."""
    entries: dict[str, Mapping[str, Any]] = {}
    for path in held_out_tables(questions, databases):
        entries = {**read_tables(path), **entries}
    return entries
