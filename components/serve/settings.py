"""Settings of serving a model and of asking it."""

from typing import Literal

from pydantic import Field

from chatmetrics.components.settings import Settings


class ServeSettings(Settings):
    """How a published model is run on this machine."""

    runtime: Literal["auto", "ollama", "llama.cpp"] = Field(
        "auto", description="What runs the model; auto is Ollama where `ollama` is on PATH, else llama.cpp's server."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 lets other machines in, unauthenticated.")
    context_length: int = Field(
        0, ge=0, description="Tokens of prompt and answer together; 0 is the published one, or 2048 for a bare GGUF."
    )
    concurrency: int = Field(1, ge=1, le=64, description="Questions answered at once; each takes a context's memory.")
    threads: int = Field(0, ge=0, description="Threads; 0 is as many as there are cores to use.")
    cache: str = Field("~/.cache/chatmetrics", description="Folder for fetched models and Ollama's copies of them.")
    max_request_kib: int = Field(1024, ge=1, description="Largest request body of the llama.cpp runtime's gateway.")


class AskSettings(Settings):
    """How a question becomes a prompt: as in training, so for a published model its manifest says it."""

    schema_form: Literal["none", "ddl", "m-schema"] = Field(
        "ddl", alias="schema", description="Form of the schema in the prompt; none for a model trained without."
    )
    sample_values: int = Field(0, ge=0, description="Example values for each column of the schema.")
    cutoff_length: int = Field(2048, ge=1, description="Tokens of prompt and answer; a longer schema is pruned.")
    max_tokens: int = Field(256, ge=1, description="Most tokens of an answer.")
    query_seconds: float = Field(5.0, gt=0, description="Seconds that the model's query may run.")
    memory_mib: int = Field(512, ge=64, description="Memory that the model's query may use.")
    max_rows: int = Field(1000, ge=1, description="Most rows that a query may return.")
