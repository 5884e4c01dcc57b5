"""Reads a recipe's questions from its one source or several, and decides which of them a model is trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.readers import TRAIN, Record, Source, read_questions
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.preprocess.source_files import is_only_here, sqlite_file
from chatmetrics.components.preprocess.splits import hold_out, limited, sample, without_scored


def read_source(settings: PreprocessSettings) -> Source:
    """Read the questions in their order, hold out dev questions where a source has none, and apply limit and weights.

    Of several sources, ids begin with `sources.` and the source's number in the recipe, from 0.

    Raises:
        InputError: a file is missing or a record is malformed; names the file, the line or index, and the field. Or two
            sources have different databases of one name.
    """
    sources = list(_read(settings))
    undivided = [record for source in sources if _is_undivided(source) for record in source.records]
    held_out = {record.id: record for record in hold_out(undivided, settings.dev_fraction, settings.seed)}
    parts = [[held_out.get(record.id, record) for record in source.records] for source in sources]
    records = [record for number in range(len(parts)) for record in _trainable(parts, number)]
    return replace(_merged(sources), records=list(_weighted(limited(records, settings), settings)))


def _read(settings: PreprocessSettings) -> Iterator[Source]:
    if not settings.sources:
        yield read_questions(settings)
    for number, each in enumerate(settings.sources):
        one = {
            "source": each.source,
            "format": each.format,
            "databases": each.databases or settings.databases,
            "fields": settings.fields | each.fields,
            "sources": [],
        }
        source = read_questions(settings.model_copy(update=one), f"preprocess.sources.{number}")
        records = [replace(record, id=_prefix(number) + record.id) for record in source.records]
        yield replace(source, records=records)


def _prefix(number: int) -> str:
    return f"sources.{number}/"


def _is_undivided(source: Source) -> bool:
    return all(record.split == TRAIN for record in source.records)


def _trainable(parts: Sequence[Sequence[Record]], number: int) -> list[Record]:
    """The records of one source, without training questions that are dev questions of another."""
    others = [record for index, part in enumerate(parts) if index != number for record in part]
    dev = [record for record in others if record.split != TRAIN]
    return without_scored(parts[number], dev, "they are dev questions of another source")


def _merged(sources: Sequence[Source]) -> Source:
    """The first source, with the databases of the others."""
    merged = sources[0]
    for number, source in enumerate(sources[1:], start=1):
        folders = dict(merged.other_databases)
        for db_id in dict.fromkeys(record.db_id for record in source.records):
            known = sqlite_file(merged.folder_of(db_id), db_id)
            if is_only_here(f"preprocess.sources.{number}", sqlite_file(source.databases, db_id), known):
                folders[db_id] = source.databases
            if merged.tables.get(db_id, source.tables.get(db_id)) != source.tables.get(db_id, merged.tables.get(db_id)):
                raise InputError(
                    f"preprocess.sources.{number}: its tables.json describes {db_id!r} in another way than that of an "
                    "earlier source; rename one of the two databases"
                )
        places = (*merged.more_folders, source.databases)
        tables = {**source.tables, **merged.tables}
        merged = replace(merged, other_databases=folders, tables=tables, more_folders=places)
    return merged


def _weighted(records: Sequence[Record], settings: PreprocessSettings) -> Iterator[Record]:
    """The records with the weights of their sources; of a weight with a fraction, a random part gets one more.

    For example, with 2.5 half of the training questions get 2 and the others 3; with 0.5 half are left out.
    """
    weights = {record.id: 1 for record in records}
    for number, each in enumerate(settings.sources):
        own = [record for record in records if record.split == TRAIN and record.id.startswith(_prefix(number))]
        count = round(each.weight % 1 * len(own))
        # Another part of each source, since two can have the same questions in the same order.
        more = {record.id for record in (sample(own, count, settings.seed + number) if count else [])}
        if own and each.weight < 1 and not more:
            raise InputError(f"preprocess.sources.{number}.weight: {each.weight:g} leaves none of {len(own)} questions")
        weights |= {record.id: int(each.weight) + (record.id in more) for record in own}
    return (replace(record, weight=weights[record.id]) for record in records if weights[record.id])
