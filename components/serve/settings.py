"""The recipe's `serve` section, and the settings of questions to a model."""

from typing import Literal

from pydantic import Field

from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.settings import Settings


class ServeSettings(Settings):
    """How a model is served on this machine."""

    runtime: Literal["auto", "ollama", "llama.cpp"] = Field(
        "auto", description="Server of the model; auto is Ollama if `ollama` is on PATH, else llama.cpp's server"
    )
    host: str = Field(
        "127.0.0.1", description="Address to listen on; 0.0.0.0 gives other machines access without authentication"
    )
    context_length: int = Field(
        0,
        ge=0,
        description="Maximum tokens of prompt and answer together; 0 is the published context length, or 2048 for a "
        "GGUF file",
    )
    concurrency: int = Field(
        1, ge=1, le=64, description="Number of requests answered at once; each needs the memory of a whole context"
    )
    threads: int = Field(
        0,
        ge=0,
        description="Threads that the model computes with; 0 is the number of available cores, within a container's "
        "CPU limit",
    )
    cache: str = Field(
        "~/.cache/chatmetrics",
        description="Folder for fetched models and Ollama's copies of them. It can be deleted at any time",
    )
    request_kib: int = Field(
        1024, ge=1, description="Maximum size of a request's body in KiB, with the llama.cpp runtime"
    )
    origins: tuple[str, ...] = Field(
        (),
        description="Origins of web pages that may use the server, for example https://chat.example.com, with the "
        "llama.cpp runtime; Ollama has OLLAMA_ORIGINS",
    )


class AskSettings(Settings):
    """How a prompt is built from a question, and limits of the query. The prompt must be the same as in training."""

    schema_form: Literal["none", "ddl", "m-schema"] = Field(
        "ddl",
        alias="schema",
        description="Form of the schema in the prompt; none for a model that was trained without a schema",
    )
    prompt_template: str = Field(
        DEEPSEEK3.text,
        description="Template of the prompt, as a manifest contains it; a manifest's own, if one is given",
    )
    sample_values: int = Field(0, ge=0, description="Number of sample values per column in the schema")
    cutoff_length: int = Field(
        2048, ge=1, description="Maximum tokens of prompt and answer together; a schema that does not fit is pruned"
    )
    context_length: int = Field(
        0,
        ge=0,
        description="Maximum tokens of prompt and answer on the server. A long question may take what is beyond "
        "cutoff_length, and is condensed if that is not enough; 0 is cutoff_length",
    )
    max_tokens: int = Field(256, ge=1, description="Maximum tokens of an answer")
    bind_names: bool = Field(
        True,
        description="Whether a query with a wrong name gets the smallest repair before it runs; the answer names it",
    )
    query_seconds: float = Field(5.0, gt=0, description="Maximum duration of a query in seconds")
    memory_mib: int = Field(512, ge=64, description="Maximum memory of a query in MiB")
    max_rows: int = Field(1000, ge=1, description="Maximum rows of a result")
