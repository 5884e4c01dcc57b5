"""The dataset card: contents of a dataset, and what was left out and why, as JSON and Markdown."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Self

from pydantic import BaseModel, ValidationError, computed_field

from chatmetrics.components.errors import InputError
from chatmetrics.components.markdown import markdown_table, markdown_text
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, PromptTemplate
from chatmetrics.components.nl2sql.schema import Omitted
from chatmetrics.components.nl2sql.sql.query_type import QUERY_TYPES
from chatmetrics.components.preprocess.build import BuiltExample
from chatmetrics.components.preprocess.readers import TRAIN
from chatmetrics.components.preprocess.settings import PreprocessSettings

JSON_NAME = "dataset_card.json"
MARKDOWN_NAME = "dataset_card.md"
MAX_BINS = 20
MAX_ROWS = 50  # of a table of examples in the Markdown; the JSON has all

TOO_LONG = "instruction, question and query alone exceed the cutoff"
NO_TABLE_FITS = "no table of the schema fits next to the question"
UNTRANSLATED = "the query has no verified translation"


class TokenCounts(BaseModel):
    """Lengths of examples (BOS, prompt, answer, EOS) in tokens; the histogram's keys have the form "from-to"."""

    minimum: int = 0
    median: int = 0
    p95: int = 0
    maximum: int = 0
    histogram: dict[str, int] = {}

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Self:
        """Summarize lengths; the histogram has at most `MAX_BINS` bins, whose width is a power of two."""
        if not lengths:
            return cls()
        ordered = sorted(lengths)
        width = 2 ** math.ceil(math.log2((ordered[-1] + 1) / MAX_BINS)) if ordered[-1] >= MAX_BINS else 1
        bins = Counter(length // width for length in ordered)
        histogram = {f"{bin * width}-{(bin + 1) * width - 1}": bins[bin] for bin in range(min(bins), max(bins) + 1)}
        p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
        return cls(minimum=ordered[0], median=median_low(ordered), p95=p95, maximum=ordered[-1], histogram=histogram)


class Dropped(BaseModel):
    """A question that was left out of the dataset.

    Attributes:
        reason: why, as a kind.
        tokens: its length without a schema; 0 if its query could not be translated.
        message: what was wrong with it in particular; may be empty.
    """

    id: str
    db_id: str
    split: str
    reason: str
    tokens: int
    message: str = ""


class GoldProblem(BaseModel):
    """A gold query that fails."""

    id: str
    db_id: str
    split: str
    failure: str
    message: str


class NotShown(BaseModel):
    """A gold query of the dataset that uses a table or column that the schema in its prompt does not show."""

    id: str
    db_id: str
    split: str
    message: str


class NotRewritten(BaseModel):
    """A query that is the answer as given, because its meaning in the form of the other answers is not certain."""

    id: str
    db_id: str
    split: str
    reason: str


class GoldCheck(BaseModel):
    """Results of the gold queries.

    Attributes:
        checked: number of queries run.
        failing: queries that fail.
        empty: ids of the queries that return no rows although their database has rows.
        empty_by_database: number of these by database.
        unpopulated: questions by database, for databases without rows; their queries cannot be checked.
        missing: questions by database, for databases without a file; their queries cannot be checked.
    """

    checked: int
    failing: list[GoldProblem]
    empty: list[str]
    empty_by_database: dict[str, int]
    unpopulated: dict[str, int]
    missing: dict[str, int]


class DatasetCard(BaseModel):
    """Settings, counts and problems of a dataset; dataset_card.json is this model.

    Attributes:
        template: the setting, for example auto.
        prompt_template: the template that it chose; every later step takes it from here. See `PromptTemplate.text`.
        condensed: questions by split of which sentences are left out, because they are too long.
        databases: the folder of SQLite files: absolute, or relative to the dataset folder if it contains them.
        other_databases: folders of the databases that are elsewhere, by database.
        translated_from: the databases in whose dialect the queries were given, if they were translated.
        held_out: the sources of the sets that are only scored on, by name.
        held_out_databases: folders of the databases that only these sets are about, by database.
        dropped: questions that are not in the dataset.
        not_shown: gold queries that use a name that their prompt does not show. Such examples teach a model to guess
            names, but they are kept, because a pruned schema or a query that fails can be intended.
        omitted: tables and views that no query can use, and why, by database.
        not_rewritten: answers without the form that `sql_form` and `plan` ask for.
        discovered_joins: joins that no foreign key declares, of all databases.
        without_noise: training examples by database that do not fit together with `noise_tables`.
    """

    source: str
    format: str
    databases: str
    other_databases: dict[str, str] = {}
    translated_from: str = ""
    held_out: dict[str, str] = {}
    held_out_databases: dict[str, str] = {}
    schema_form: str
    sample_values: int
    template: str = "deepseek3"
    prompt_template: str = DEEPSEEK3.text
    sql_form: str = "as_given"
    plan: str = "none"
    noise_tables: int = 0
    discovered_joins: int = 0
    tokenizer: str
    tokenizer_revision: str = ""
    cutoff_length: int
    limit: int
    seed: int
    splits: dict[str, int]
    query_types: dict[str, dict[str, int]]
    examples_by_database: dict[str, dict[str, int]]
    tokens: TokenCounts
    pruned: dict[str, int]
    condensed: dict[str, int] = {}
    dropped: list[Dropped]
    gold: GoldCheck
    not_shown: list[NotShown] = []
    omitted: dict[str, dict[str, str]] = {}
    not_rewritten: list[NotRewritten] = []
    without_noise: dict[str, int] = {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def dropped_by_split(self) -> dict[str, dict[str, int]]:
        """Number of dropped questions by split and reason. Evaluate states it: nobody was asked these questions."""
        counts: dict[str, dict[str, int]] = {}
        for item in self.dropped:
            reasons = counts.setdefault(item.split, {})
            reasons[item.reason] = reasons.get(item.reason, 0) + 1
        return counts

    @computed_field  # type: ignore[prop-decorator]
    @property
    def not_shown_by_split(self) -> dict[str, int]:
        """Number of gold queries by split that use a name that their prompt does not show."""
        return _count(item.split for item in self.not_shown)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def not_rewritten_by_split(self) -> dict[str, dict[str, int]]:
        """Number of answers by reason and split that do not have the wanted form."""
        return _by_split((item.reason, item.split) for item in self.not_rewritten)

    @classmethod
    def of(
        cls,
        settings: PreprocessSettings,
        template: PromptTemplate,
        databases: str,
        built: Sequence[BuiltExample],
        other_databases: Mapping[str, str],
        held_out_databases: Mapping[str, str],
        translated_from: str = "",
    ) -> Self:
        """Create the card of a dataset from its built examples."""
        examples = [item.example for item in built if item.example]
        query_types = _by_split((example.query_type, example.split) for example in examples)
        return cls(
            source=_named(settings),
            format=", ".join(dict.fromkeys(each.format for each in settings.sources)) or settings.format,
            databases=databases,
            other_databases=dict(sorted(other_databases.items())),
            translated_from=translated_from,
            held_out={name: held_out.source for name, held_out in settings.held_out.items()},
            held_out_databases=dict(sorted(held_out_databases.items())),
            schema_form=settings.schema_form,
            sample_values=settings.sample_values,
            template=settings.template,
            prompt_template=template.text,
            sql_form=settings.sql_form,
            plan=settings.plan,
            noise_tables=settings.noise_tables,
            tokenizer=settings.tokenizer,
            tokenizer_revision=settings.tokenizer_revision,
            cutoff_length=settings.cutoff_length,
            limit=settings.limit,
            seed=settings.seed,
            splits=dict(Counter(example.split for example in examples)),
            query_types={
                name: query_types[name] for name in (*QUERY_TYPES, *sorted(query_types)) if name in query_types
            },
            examples_by_database=dict(sorted(_by_split((item.db_id, item.split) for item in examples).items())),
            tokens=TokenCounts.of([item.tokens for item in built if item.example]),
            pruned=_count(item.record.db_id for item in built if item.is_pruned),
            condensed=_count(item.record.split for item in built if item.is_condensed),
            dropped=[
                Dropped(
                    id=item.record.id,
                    db_id=item.record.db_id,
                    split=item.record.split,
                    reason=_reason(item, settings.cutoff_length),
                    tokens=item.tokens,
                    message=item.untranslated,
                )
                for item in built
                if not item.example
            ],
            gold=_check_gold(built),
            not_rewritten=[
                NotRewritten(id=item.record.id, db_id=item.record.db_id, split=item.record.split, reason=item.kept)
                for item in built
                if item.example and item.kept
            ],
            without_noise=_count(
                item.record.db_id
                for item in built
                if settings.noise_tables and item.example and item.example.split == TRAIN and not item.has_noise
            ),
            not_shown=[
                NotShown(id=item.record.id, db_id=item.record.db_id, split=item.record.split, message=item.not_shown)
                for item in built
                if item.example and item.not_shown
            ],
            omitted={
                item.record.db_id: {found.name: found.reason for found in item.omitted}
                for item in built
                if item.omitted
            },
        )

    @classmethod
    def read(cls, dataset: Path) -> Self:
        """Read the card of a dataset folder.

        Raises:
            InputError: the folder has no card, or an invalid one.
        """
        path = dataset / JSON_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); give a folder that preprocess wrote"
            ) from error
        except ValidationError as error:
            raise InputError(
                f"{path}: not a dataset card ({error.error_count()} invalid fields); run preprocess again"
            ) from error

    def write(self, dataset: Path) -> None:
        """Write the card to the dataset folder, as JSON and Markdown."""
        (dataset / JSON_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (dataset / MARKDOWN_NAME).write_text(self.markdown(), encoding="utf-8")

    def summary(self) -> str:
        """One line: numbers of examples, and of problems."""
        counts = ", ".join(f"{count} {split}" for split, count in self.splits.items()) or "no examples"
        return (
            f"{counts}; {sum(self.pruned.values())} with a pruned schema, {sum(self.condensed.values())} with a "
            f"condensed question, {len(self.dropped)} dropped; of "
            f"{self.gold.checked} gold queries, {len(self.gold.failing)} fail and {len(self.gold.empty)} return no rows"
        )

    def warnings(self) -> list[str]:
        """One line for each kind of problem that makes a model worse without any error."""
        found = [
            f"{db_id}: {Omitted(name, reason).message}"
            for db_id, reasons in self.omitted.items()
            for name, reason in reasons.items()
        ]
        if self.gold.failing:
            failed = self.gold.failing[0]
            found.append(
                f"gold queries that fail: {len(self.gold.failing)} of {self.gold.checked}; for example {failed.id} "
                f"({failed.message}); they are kept, see gold.failing in {JSON_NAME}"
            )
        if untranslated := [item for item in self.dropped if item.reason == UNTRANSLATED]:
            example = untranslated[0]
            found.append(
                f"questions left out, because their query has no verified translation: {len(untranslated)}; for "
                f"example {example.id} ({example.message}); see dropped in {JSON_NAME}"
            )
        if self.not_shown:
            first = self.not_shown[0]
            counts = ", ".join(f"{count} {split}" for split, count in self.not_shown_by_split.items())
            found.append(
                f"gold queries that use a table or column that their prompt does not show: {counts}; for example "
                f"{first.id} ({first.message}); they are kept, see not_shown in {JSON_NAME}"
            )
        if self.not_rewritten:
            reasons = Counter(item.reason for item in self.not_rewritten)
            counts = ", ".join(f"{count} ({reason})" for reason, count in reasons.items())
            found.append(f"answers that are the query as given: {counts}; see not_rewritten in {JSON_NAME}")
        if self.without_noise:
            found.append(
                f"training examples without tables of other databases, with which they would not fit: "
                f"{sum(self.without_noise.values())} of {self.splits.get(TRAIN, 0)}; see without_noise in {JSON_NAME}"
            )
        return found

    def markdown(self) -> str:
        """The card as Markdown."""
        return "\n\n".join([*self._overview(), *self._counts(), *self._left_out(), *self._gold()]) + "\n"

    def _overview(self) -> list[str]:
        samples = f" with {self.sample_values} values per column" if self.sample_values else ""
        facts = [
            ("source", f"{self.source} ({self.format})" if self.source else self.format),
            ("databases", self.databases),
            *([("queries translated from those of", self.translated_from)] if self.translated_from else []),
            *((f"held out: {name}", source) for name, source in self.held_out.items()),
            ("schema in the prompt", self.schema_form + samples),
            ("prompt template", f"{self.template}: {PromptTemplate.parse(self.prompt_template).name}"),
            ("tables of other databases", self.noise_tables or "none"),
            ("joins that no foreign key declares", f"{self.discovered_joins:,}" if self.discovered_joins else "none"),
            ("answers", self.sql_form + (f" after a plan ({self.plan})" if self.plan != "none" else "")),
            ("tokenizer", self.tokenizer),
            ("cutoff", f"{self.cutoff_length} tokens"),
            ("limit and seed", f"{self.limit or 'none'}, {self.seed}"),
        ]
        return ["# Dataset card", markdown_text(self.summary()) + ".", markdown_table(("property", "value"), facts)]

    def _counts(self) -> list[str]:
        splits = list(self.splits)
        tokens = self.tokens
        widest = max(tokens.histogram.values(), default=1)
        histogram = [(name, n, "█" * math.ceil(30 * n / widest)) for name, n in tokens.histogram.items()]
        return [
            "## Examples by query type",
            markdown_table(("query type", *splits), _rows(self.query_types, splits)),
            "## Tokens per example",
            f"From {tokens.minimum} to {tokens.maximum}, median {tokens.median}, 95th percentile {tokens.p95}.",
            markdown_table(("tokens", "examples", ""), histogram),
            "## Examples by database",
            markdown_table(("database", *splits), _rows(self.examples_by_database, splits)),
        ]

    def _left_out(self) -> list[str]:
        reasons = [(*key, count) for key, count in Counter((item.split, item.reason) for item in self.dropped).items()]
        dropped = [(item.id, item.db_id, item.split, item.tokens, item.reason) for item in self.dropped]
        return [
            "## Pruned and dropped",
            f"{sum(self.pruned.values())} examples have a pruned schema: what has least to do with the question is "
            f"left out. {sum(self.condensed.values())} have a condensed question: sentences that say least about the "
            f"database are left out. {len(self.dropped)} questions were dropped.",
            markdown_table(("database", "pruned"), self.pruned.items()),
            markdown_table(("split", "condensed"), self.condensed.items()),
            markdown_table(("split", "reason", "dropped"), reasons),
            markdown_table(("id", "database", "split", "tokens without schema", "reason"), dropped),
            *self._other_forms(),
        ]

    def _other_forms(self) -> list[str]:
        """What does not have the form that the settings ask for; nothing for the settings' defaults."""
        kept = [(item.id, item.db_id, item.split, item.reason) for item in self.not_rewritten]
        found = []
        if (self.sql_form, self.plan) != ("as_given", "none"):
            found.append(f"{len(kept)} answers are the query as given.")
            found.append(markdown_table(("query as given", "database", "split", "reason"), kept[:MAX_ROWS]))
        if self.noise_tables:
            found.append(markdown_table(("database", "training examples without noise"), self.without_noise.items()))
        return found

    def _gold(self) -> list[str]:
        gold = self.gold
        not_shown = [(item.id, item.db_id, item.split, item.message) for item in self.not_shown]
        omitted = [(db_id, *item) for db_id, reasons in self.omitted.items() for item in reasons.items()]
        failing = [(item.id, item.db_id, item.split, item.failure, item.message) for item in gold.failing]
        return [
            "## Gold queries",
            f"{gold.checked} were run: {len(gold.failing)} fail, and {len(gold.empty)} return no rows although the "
            f"database has rows. {sum(gold.unpopulated.values())} are about databases without rows and "
            f"{sum(gold.missing.values())} about databases without a file; these cannot be checked.",
            markdown_table(("failing query", "database", "split", "failure", "message"), failing),
            markdown_table(("database", "queries without rows"), gold.empty_by_database.items()),
            markdown_table(("database without rows", "questions"), gold.unpopulated.items()),
            markdown_table(("database without a file", "questions"), gold.missing.items()),
            f"{len(not_shown)} use a table or column that the schema in their prompt does not show.",
            markdown_table(
                ("query with a name that is not shown", "database", "split", "message"), not_shown[:MAX_ROWS]
            ),
            markdown_table(("database", "not in prompts, because no query can use it", "reason"), omitted),
        ]


def _check_gold(built: Iterable[BuiltExample]) -> GoldCheck:
    run = [(item, item.gold) for item in built if item.gold]
    empty = [item.record for item, gold in run if not gold.failure and not gold.rows and item.is_populated]
    return GoldCheck(
        checked=len(run),
        failing=[
            GoldProblem(
                id=item.record.id,
                db_id=item.record.db_id,
                split=item.record.split,
                failure=gold.failure,
                message=gold.message,
            )
            for item, gold in run
            if gold.failure
        ],
        empty=[record.id for record in empty],
        empty_by_database=_count(record.db_id for record in empty),
        unpopulated=_count(item.record.db_id for item, _ in run if not item.is_populated),
        missing=_count(item.record.db_id for item in built if item.gold is None),
    )


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _named(settings: PreprocessSettings) -> str:
    """The source or, with their weights, the sources."""
    several = (f"{each.source} (weight {each.weight:g})" for each in settings.sources)
    return ", ".join(several) or settings.source


def _by_split(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for (name, split), count in Counter(pairs).items():
        counts.setdefault(name, {})[split] = count
    return counts


def _rows(counts: Mapping[str, Mapping[str, int]], splits: Iterable[str]) -> list[tuple[object, ...]]:
    splits = list(splits)
    return [(name, *(by_split.get(split, 0) for split in splits)) for name, by_split in counts.items()]


def _reason(item: BuiltExample, cutoff_length: int) -> str:
    """Why a question has no example."""
    if item.untranslated:
        return UNTRANSLATED
    return TOO_LONG if item.tokens > cutoff_length else NO_TABLE_FITS
