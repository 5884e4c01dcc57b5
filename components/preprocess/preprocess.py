"""Turns questions, SQL queries and databases into a dataset, which is written completely or not at all."""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from chatmetrics.components import console
from chatmetrics.components.base_model.references import local_tokenizer
from chatmetrics.components.errors import InputError, ServiceError, StorageError
from chatmetrics.components.nl2sql.answers.answer_form import AnswerForm
from chatmetrics.components.nl2sql.descriptions import Descriptions, KnownDatabases, write_descriptions
from chatmetrics.components.nl2sql.example import HELD_OUT, write_examples
from chatmetrics.components.nl2sql.hub_card import write_hub_card
from chatmetrics.components.nl2sql.prompts.chat_template import choose_template
from chatmetrics.components.nl2sql.schema import Schema, SchemaForm
from chatmetrics.components.preprocess.build import BuiltExample, Database, OpenDatabases, Options, Task, build
from chatmetrics.components.preprocess.dataset_card import JSON_NAME, DatasetCard
from chatmetrics.components.preprocess.held_out import with_held_out
from chatmetrics.components.preprocess.hotel import generate
from chatmetrics.components.preprocess.joins.databases import with_joins
from chatmetrics.components.preprocess.knowledge.knowledge import Knowledge, add_bird, read_knowledge, with_examples
from chatmetrics.components.preprocess.knowledge.names import check_names
from chatmetrics.components.preprocess.llama_factory import write_dataset_info
from chatmetrics.components.preprocess.noise_tables import choose_databases
from chatmetrics.components.preprocess.readers import DEV, TRAIN, Record, Source
from chatmetrics.components.preprocess.remote import local_source, original, recorded
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.preprocess.sources import read_source
from chatmetrics.components.preprocess.translation import translate
from chatmetrics.components.storage.folder import atomic_folder, check_replaceable

HOTEL_DATABASES = "databases"
QUESTIONS_PER_TASK = 500  # the questions of a larger database are split among several workers
MAX_TASKS_PER_CHUNK = 8


def preprocess(settings: PreprocessSettings, output: Path) -> DatasetCard:
    """Write the dataset to the folder `output` and return its card.

    An older dataset in that folder is replaced once everything is written. The same settings and data give the same
    bytes, regardless of the number of workers.

    Raises:
        InputError: a setting, a record, a database or the tokenizer is invalid; names it.
        ServiceError: a worker process was killed.
        StorageError: the disk is full or the folder is not writable.
    """
    output = output.absolute()
    check_replaceable(output, JSON_NAME, "a dataset")
    options = _options(settings)
    with local_source(settings) as local, atomic_folder(output) as dataset:
        card = _fill(settings, local, options, dataset)
    for text in card.warnings():
        console.warning(f"preprocess: {text}")
    console.info(f"preprocess: {card.summary()}; see {output / 'dataset_card.md'}")
    return card


def _options(settings: PreprocessSettings) -> Options:
    if not settings.tokenizer:
        raise InputError("preprocess.tokenizer is empty: set it to the folder or name of the base model")
    if settings.noise_tables and settings.schema_form == "none":
        raise InputError("preprocess.noise_tables: prompts show no schema; set preprocess.schema to ddl or m-schema")
    tokenizer = local_tokenizer(settings.tokenizer, settings.tokenizer_revision).absolute()
    return Options(
        tokenizer=tokenizer,
        template=choose_template(settings.template, tokenizer, "preprocess.template"),
        form=None if settings.schema_form == "none" else settings.schema_form,
        sample_values=settings.sample_values,
        cutoff_length=settings.cutoff_length,
        query_seconds=settings.query_seconds,
        answer_form=AnswerForm(settings.sql_form, settings.plan),
        noise_tables=settings.noise_tables,
        seed=settings.seed,
    )


def _fill(settings: PreprocessSettings, local: PreprocessSettings, options: Options, dataset: Path) -> DatasetCard:
    is_hotel = settings.format == "hotel"
    if is_hotel:
        _generate_hotel(dataset, settings.seed)
        source = read_source(settings.model_copy(update={"source": str(dataset), "format": "jsonl", "databases": ""}))
    else:
        source = read_source(local)
    knowledge = read_knowledge(local.knowledge)
    source = with_held_out(with_examples(source, knowledge.examples), local)
    databases = HOTEL_DATABASES if is_hotel else source.address or original(source.databases, local, settings)
    untranslated: list[BuiltExample] = []
    if settings.translate_to:
        source, untranslated = translate(source, settings.translate_to, options.query_seconds, knowledge.has_private)
    source = _with_descriptions(source, knowledge, options)
    if options.form and settings.discovered_joins == "linking":
        source = replace(source, known=with_joins(source, options.query_seconds))
    built = _build_all(source, options, settings.workers)
    _check_gold(built)
    built += untranslated
    examples = [item.example for item in built if item.example]
    if not examples and settings.format != "none":
        raise InputError(f"no question fits {settings.cutoff_length} tokens; raise preprocess.cutoff_length")
    write_examples(dataset / f"{TRAIN}.jsonl", (example for example in examples if example.split == TRAIN))
    scored = [example for example in examples if example.split != TRAIN]
    write_examples(dataset / f"{DEV}.jsonl", (example for example in scored if example.split not in settings.held_out))
    if settings.held_out:
        write_examples(dataset / HELD_OUT, (example for example in scored if example.split in settings.held_out))
    write_dataset_info(dataset, settings, options.template)
    write_hub_card(dataset)
    if settings.knowledge and not options.form:
        console.note("preprocess: prompts show no schema, so of the knowledge they show only the terms")
    write_descriptions(dataset, _shown(source.known, options.form))
    others, held_out = (
        {db_id: original(folder, local, settings) for db_id, folder in folders.items()}
        for folders in (source.other_databases, source.held_out_databases)
    )
    where, given = (source.address, databases) if settings.translate_to else (databases, "")
    card = DatasetCard.of(recorded(settings, local), options.template, where, built, others, held_out, given)
    card = card.model_copy(
        update={"discovered_joins": sum(len(known.joins) for known in source.known.by_name.values())}
    )
    card.write(dataset)
    return card


def _check_gold(built: Sequence[BuiltExample]) -> None:
    """Raise `InputError` if all gold queries that were run failed."""
    ran = [item for item in built if item.gold]
    if ran and all(item.gold and item.gold.failure for item in ran):
        first = ran[0]
        assert first.gold is not None
        raise InputError(
            f"all {len(ran)} gold queries fail; the first, {first.record.where}: {first.gold.failure}: "
            f"{first.gold.message}; check preprocess.databases, and the dialect of the queries"
        )


def _with_descriptions(source: Source, knowledge: Knowledge, options: Options) -> Source:
    """Add what is known about the databases, after a check that they have all that is named."""
    add_bird(knowledge, source)
    if text := knowledge.summary():
        console.info(f"preprocess: known about the databases: {text}")
    asked = {record.db_id for record in source.records}
    with OpenDatabases(options.query_seconds) as opened:

        def schema_of(db_id: str) -> Schema:
            return opened.schema(Database.of(source, db_id, f"preprocess.knowledge: databases.{db_id}"), 0)

        check_names(knowledge, asked, schema_of)
    return replace(source, known=knowledge.with_tables(_descriptions(source)))


def _shown(known: KnownDatabases, form: SchemaForm | None) -> KnownDatabases:
    """What prompts show, and what is private: of a schema that they do not show nothing else is kept."""
    if form:
        return known

    def kept(each: Descriptions) -> Descriptions:
        return Descriptions(terms=each.terms, private=each.private)

    return KnownDatabases({db_id: kept(each) for db_id, each in known.by_name.items()}, kept(known.everywhere))


def _descriptions(source: Source) -> dict[str, Descriptions]:
    """What tables.json knows about each of its databases, since any of them can be asked about later."""
    asked = {record.db_id for record in source.records}
    found = {}
    for db_id, entry in source.tables.items():
        try:
            found[db_id] = Descriptions.from_spider(entry)
        except InputError as error:
            if db_id in asked:
                raise
            console.warning(f"preprocess: {error}: its descriptions are left out, because no question is about it")
    return found


def _generate_hotel(folder: Path, seed: int) -> None:
    try:
        generate(folder, seed)
    except sqlite3.OperationalError as error:
        raise StorageError(
            f"{folder.parent}: the demo's database cannot be written ({error}); free some space"
        ) from error


def _build_all(source: Source, options: Options, workers: int) -> list[BuiltExample]:
    """Build all records in worker processes; the result is in the order of the records."""
    tasks = list(_tasks(source, options))
    processes = _count_processes(workers, len(tasks))
    # Several small databases form one chunk, but each process gets at least four chunks, so that all end about the
    # same time.
    size = max(1, min(MAX_TASKS_PER_CHUNK, len(tasks) // (4 * processes)))
    chunks = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    work = partial(build, options)
    if processes == 1:
        built = _collect(map(work, chunks), len(source.records))
    else:
        # A new interpreter per worker: forking would copy this process's locks, but not the threads that hold them.
        try:
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                built = _collect(pool.map(work, chunks), len(source.records))
        except BrokenProcessPool as error:
            raise ServiceError(
                "a preprocess worker was killed, possibly because it was out of memory; lower preprocess.workers"
            ) from error
    positions = {record.id: position for position, record in enumerate(source.records)}
    return sorted(built, key=lambda item: positions[item.record.id])


def _tasks(source: Source, options: Options) -> Iterator[Task]:
    by_database: dict[str, list[Record]] = {}
    for record in source.records:
        by_database.setdefault(record.db_id, []).append(record)
    databases: dict[str, Database] = {}
    for db_id, records in by_database.items():
        databases[db_id] = Database.named_by(source, records[0])
        if not databases[db_id].can_run:
            console.info(
                f"preprocess: {db_id} has no file in {source.folder_of(db_id)}: its schema is taken from tables.json, "
                f"and the gold queries of its {len(records)} questions are not run"
            )
    trained = [db_id for db_id, records in by_database.items() if any(record.split == TRAIN for record in records)]
    if options.noise_tables and len(trained) == 1:
        raise InputError(
            f"preprocess.noise_tables: all training questions are about {trained[0]}, so there are no tables of other "
            "training databases to add; set it to 0"
        )
    for db_id, records in by_database.items():
        others = choose_databases(db_id, trained, options.noise_tables, options.seed) if db_id in trained else []
        noise = tuple(databases[name] for name in others)
        for start in range(0, len(records), QUESTIONS_PER_TASK):
            yield Task(databases[db_id], tuple(records[start : start + QUESTIONS_PER_TASK]), noise)


def _count_processes(workers: int, tasks: int) -> int:
    processors = len(os.sched_getaffinity(0))
    if workers > processors:
        console.info(
            f"preprocess: {workers} workers are configured, but this machine has {processors} CPUs: using {processors}"
        )
    return max(1, min(workers, processors, tasks))


def _collect(results: Iterable[list[BuiltExample]], total: int) -> list[BuiltExample]:
    progress = console.Progress("preprocess", total, "questions")
    built: list[BuiltExample] = []
    for result in results:
        built += result
        progress.update(len(built))
    return built
