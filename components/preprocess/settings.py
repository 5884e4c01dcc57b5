"""The recipe's `preprocess` section."""

from typing import Literal

from pydantic import Field

from chatmetrics.components.settings import Settings


class PreprocessSettings(Settings):
    """Where the questions come from, and what a prompt holds."""

    source: str = Field(
        "", description="folder or file with the questions, also s3://; not needed for the formats 'hotel' and 'none'"
    )
    format: Literal["spider", "cspider", "jsonl", "csv", "hotel", "none"] = Field(
        "spider",
        description="layout of the source: Spider's, CSpider's, a user's own records, or the demo's; none: databases "
        "only, about which a teacher asks and answers",
    )
    databases: str = Field(
        "",
        description="folder of SQLite files, also s3://: <db_id>/<db_id>.sqlite or <db_id>.sqlite, or the folder that "
        "holds it as database/ or databases/; empty: beside the source",
    )
    schema_form: Literal["none", "ddl", "m-schema"] = Field(
        "ddl", alias="schema", description="how the prompt shows the schema; none is the published Alpaca form"
    )
    sample_values: int = Field(0, ge=0, le=20, description="values of each column shown with the schema")
    tokenizer: str = Field(
        "", description="folder or Hugging Face name of the model that counts tokens; empty: the recipe's base model"
    )
    tokenizer_revision: str = Field(
        "", description="branch, tag or commit of a tokenizer on the Hub; empty: the default branch, or the recipe's"
    )
    cutoff_length: int = Field(2048, ge=16, description="most tokens of prompt and answer together, BOS and EOS too")
    workers: int = Field(16, ge=1, description="parallel processes; never more than there are CPUs")
    limit: int = Field(0, ge=0, description="most questions for training and most held out, drawn by seed; 0 is all")
    dev_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the queries held out when the source has no dev questions"
    )
    query_seconds: float = Field(10.0, gt=0, description="seconds that checking one gold query may take")
    seed: int = Field(42, description="decides what limit and dev_fraction draw, and what the demo asks")
