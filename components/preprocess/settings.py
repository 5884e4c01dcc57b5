"""The recipe's `preprocess` section."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, TypeAdapter, model_validator

from chatmetrics.components.nl2sql.databases.addresses import (
    ListedDatabase,
    as_text,
    dialect_at,
    is_address,
    without_password,
)
from chatmetrics.components.nl2sql.prompts.template import TemplateName
from chatmetrics.components.settings import Settings

FieldName = Literal["question", "sql", "db_id", "id", "split", "evidence", "difficulty"]
RESERVED = ("train", "dev", "all")


def _not_reserved(name: str) -> str:
    if name.lower() in RESERVED:
        raise ValueError(f"a held-out set cannot be called {', '.join(RESERVED[:-1])} or {RESERVED[-1]}")
    return name


class NamedDatabase(Settings):
    """One database of a list."""

    name: str = Field(min_length=1, description="Its name in questions, `db_id`")
    address: Annotated[str, AfterValidator(without_password)] = Field(description="Its address, without a password")
    schema_name: str = Field("", alias="schema", description="Schema of PostgreSQL; empty: those of the search path")
    tables: list[str] = Field([], description="Tables and views that questions are about; empty: all")


def _as_text(value: Any) -> Any:
    """A list of databases as text, as which it passes wherever an address does."""
    if not isinstance(value, list):
        return value
    given = TypeAdapter(list[NamedDatabase]).validate_python(value)
    for each in given:
        if not is_address(each.address):
            raise ValueError(f"{each.address!r} is no address, as postgresql+psycopg://reader@host/hotel")
        if each.schema_name and dialect_at(each.address) != "postgres":
            raise ValueError(f"{each.name}: `schema` is for PostgreSQL; write another server's schema in the address")
    if len({each.name for each in given}) < len(given):
        raise ValueError("two databases have one name")
    return as_text([ListedDatabase(each.name, each.address, each.schema_name, tuple(each.tables)) for each in given])


Address = Annotated[str, BeforeValidator(_as_text), AfterValidator(without_password)]
# A name is a split in the dataset card and in reports.
SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"), AfterValidator(_not_reserved)]


class HeldOutSettings(Settings):
    """One set of questions that are scored on and never trained on."""

    source: str = Field(min_length=1, description="File or folder with the questions, or its s3:// URI")
    databases: str = Field(
        "",
        description="Folder of SQLite files, or its s3:// URI; empty means next to the questions and, for databases "
        "that are not there, preprocess.databases",
    )
    fields: dict[FieldName, str] = Field({}, description="As preprocess.fields, for this set")


def _as_set(value: Any) -> Any:
    """A set of which only the path is given."""
    return {"source": value} if isinstance(value, str) else value


class SourceSettings(Settings):
    """One of several sources of questions."""

    source: str = Field(min_length=1, description="As preprocess.source")
    format: Literal["spider", "cspider", "jsonl", "csv"] = Field("spider", description="Layout of this source")
    databases: str = Field(
        "",
        description="Folder of SQLite files, or its s3:// URI; empty means preprocess.databases or, if that is empty "
        "too, next to this source",
    )
    fields: dict[FieldName, str] = Field({}, description="As preprocess.fields, for this source")
    weight: float = Field(
        1.0,
        gt=0,
        le=100,
        description="How often an epoch of training has each of its training questions: 2 means twice, and 0.5 that a "
        "random half is left out",
    )


class PreprocessSettings(Settings):
    """The source of questions and databases, and the format of the examples."""

    source: str = Field(
        "",
        description="Folder or file with the questions, its s3:// URI, or a dataset on the Hugging Face Hub as "
        "hub:ORGANIZATION/NAME[/CONFIGURATION][@REVISION]; not needed for the formats hotel and none",
    )
    sources: list[SourceSettings] = Field(
        [],
        description="Several sources, instead of `source` and `format`, as in [{source: PATH, format: spider, weight: "
        "0.5}, {source: PATH, format: jsonl}]",
    )
    format: Literal["spider", "cspider", "jsonl", "csv", "hotel", "none"] = Field(
        "spider",
        description="Layout of the source: Spider's, CSpider's, your own JSON, JSONL or CSV, generated demo data "
        "(hotel), or databases without questions, which a teacher then generates (none)",
    )
    fields: dict[FieldName, str] = Field(
        {},
        description="Names of the source's fields that are not called so, as in {question: nl}; case does not matter",
    )
    databases: Address = Field(
        "",
        description="Folder of SQLite files, or its s3:// URI, with <db_id>/<db_id>.sqlite or <db_id>.sqlite, or a "
        "folder that contains it as database/ or databases/; empty means next to the source. Or the address of a "
        "server or of DuckDB files, without a password, as in postgresql+psycopg://reader@host/{db_id}, "
        "mysql+pymysql://reader@host/{db_id} or duckdb:////data/{db_id}.duckdb. Or a list, as in "
        "[{name: hotel, address: ADDRESS, schema: sales, tables: [booking]}]",
    )
    translate_to: Address = Field(
        "",
        description="Address, or list, of the same databases in another dialect, into which the queries are "
        "translated; a question whose translation does not return the same rows is left out",
    )
    knowledge: str = Field(
        "",
        description="File or folder, or its s3:// URI, with what is known about the databases: knowledge.yaml, dbt's "
        "property files, or BIRD's database_description (docs/knowledge.md)",
    )
    held_out: dict[SetName, Annotated[HeldOutSettings, BeforeValidator(_as_set)]] = Field(
        {},
        description="Named sets of questions that are never trained on and that evaluate scores separately, as in "
        "{dk: PATH}, or {dk: {source: PATH, databases: PATH, fields: {question: nl}}}",
    )
    schema_form: Literal["none", "ddl", "m-schema"] = Field(
        "ddl", alias="schema", description="How the prompt shows the schema; none is the published Alpaca format"
    )
    template: TemplateName = Field(
        "auto",
        description="Template of the prompts, which the dataset, the adapter and the model keep: auto is the base "
        "model's own chat template, or plain if it has none; deepseek3 is that of the published recipe",
    )
    sample_values: int = Field(0, ge=0, le=20, description="Sample values per column in the schema")
    discovered_joins: Literal["off", "linking"] = Field(
        "linking",
        description="Joins that no foreign key declares. linking: found by names, samples of values and training "
        "queries, and used to choose what is shown of a schema that does not fit, and to repair names",
    )
    sql_form: Literal["as_given", "canonical", "from_first"] = Field(
        "as_given",
        description="SQL of the answers in training. canonical: columns with their table's name, aliases only where a "
        "table occurs twice, one spelling. from_first: canonical with FROM before SELECT, which is turned back when a "
        "model answers",
    )
    plan: Literal["none", "tables", "conditions"] = Field(
        "none",
        description="Lines before the SQL of the answers in training: tables for the tables and joins of the query, "
        "conditions for its conditions too",
    )
    noise_tables: int = Field(
        0,
        ge=0,
        le=50,
        description="Number of tables of other training databases that the prompts of training questions also show, "
        "where they fit",
    )
    tokenizer: str = Field(
        "",
        description="Folder, Hugging Face name or GGUF file of the model whose tokenizer counts the tokens; empty "
        "means the recipe's base model",
    )
    tokenizer_revision: str = Field(
        "",
        description="Branch, tag or commit of a tokenizer on the Hub; empty means the default branch, or the recipe's",
    )
    cutoff_length: int = Field(
        2048, ge=16, description="Maximum tokens of an example: BOS, prompt, answer and EOS together"
    )
    workers: int = Field(16, ge=1, description="Worker processes; at most one per CPU is started")
    limit: int = Field(
        0,
        ge=0,
        description="Maximum number of training questions, of dev questions, and of the questions of each held-out "
        "set, drawn at random with the seed; 0 means all",
    )
    dev_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Fraction of the queries that is held out, with all their questions, if the source has no dev "
        "questions",
    )
    query_seconds: float = Field(10.0, gt=0, description="Time limit for checking one gold query")
    seed: int = Field(42, description="Random seed of limit, dev_fraction, noise_tables and the demo data")

    @model_validator(mode="after")
    def _has_one_kind_of_source(self) -> Self:
        if self.sources and self.source:
            raise ValueError("source and sources are both set; leave out one of them")
        if self.sources and self.format in ("hotel", "none"):
            raise ValueError(f"sources are given, but the format is {self.format}, which reads no questions")
        if is_address(self.databases) and any(each.databases for each in self.sources):
            raise ValueError("databases is an address, so that no source can have databases of its own")
        return self

    @model_validator(mode="after")
    def _translates_to_an_address(self) -> Self:
        if self.translate_to and not is_address(self.translate_to):
            raise ValueError(f"translate_to is {self.translate_to!r}, which is no address; SQLite files are none")
        return self
