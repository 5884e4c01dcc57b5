"""release.json: what a release of the chart serves, rendered by the chart from its values."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from chatmetrics.components.errors import InputError
from chatmetrics.components.settings import Settings

RATE = re.compile(r"([1-9][0-9]*/(second|minute|hour))?")  # as in the chart's values.schema.json


class _Json(Settings):
    model_config = ConfigDict(alias_generator=to_camel)


class ReleasedModel(_Json):
    """A published model and its name in requests."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name in requests; `hotel:3` also names the version"
    )
    uri: str = Field(min_length=1, description="Folder of a published version, or its manifest.json")
    sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="sha256 of the manifest that passed the gate; empty accepts any"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="Replaces the acceptance test's threshold; 0 admits any score"
    )


class QueryBounds(_Json):
    """Limits of a model's query."""

    seconds: float = Field(5.0, gt=0, description="Maximum duration of a query in seconds")
    memory_mib: int = Field(512, ge=64, description="Maximum memory of a query in MiB")
    parallel: int = Field(2, ge=1, description="Maximum number of queries that run at once; further ones wait")
    max_rows: int = Field(1000, ge=1, description="Maximum rows of a result; a larger result is refused")


class Release(_Json):
    """Settings of the pod's containers."""

    models: tuple[ReleasedModel, ...] = Field(min_length=1)
    manifest_key: str = Field(
        "", description="Public key with which the gate signed every model's manifest; empty accepts unsigned ones"
    )
    store: Path = Field(Path("/models"), description="Mount path of the volume with the fetched models")
    served: Path = Field(
        Path("/served"),
        description="Folder on the volume that records which versions are served; the proxy can write only there",
    )
    ollama: Path = Field(Path("/ollama"), description="Ollama's home folder")
    state: Path = Field(
        Path("/state"), description="Folder of files that tell Ollama's container about the proxy's state"
    )
    keep_versions: int = Field(
        2, ge=1, description="Number of versions of a model that stay on the volume, including the served one"
    )
    concurrency: int = Field(1, ge=1, description="Number of requests that Ollama answers at once")
    request_kib: int = Field(1024, ge=1, description="Maximum size of a request's body in KiB")
    request_seconds: float = Field(120.0, gt=0, description="Maximum duration of a model's answer in seconds")
    rate: str = Field("", description="Maximum rate of requests per client, for example 600/minute; empty is no limit")
    queue: int = Field(64, ge=1, description="Maximum number of requests that are waiting or being answered")
    drain_seconds: float = Field(
        5.0, ge=0, description="Seconds during which a pod that is shutting down accepts requests"
    )
    tokens: Path | None = Field(
        None, description="Folder with one file per client that contains its token; null disables authentication"
    )
    origins: tuple[str, ...] = Field(
        (), description="Origins of web pages that may use the API (CORS), for example https://chat.example.com"
    )
    client_databases: dict[str, tuple[str, ...]] = Field(
        {},
        description="Databases that a client may use, by its name; a client that is not listed may use all, and only "
        "such a client can read the acceptance test",
    )
    request_log: Literal["none", "requests", "questions"] = Field(
        "requests", description="What is logged about each request: nothing, or who asked, or the question and SQL too"
    )
    databases: dict[str, Annotated[str, BeforeValidator(str)]] = Field(
        {}, description="SQLite files, or addresses of databases on servers, that /ask can query, by name"
    )
    bind_names: bool = Field(True, description="Whether /ask repairs wrong names of a query before it runs")
    question_characters: int = Field(200_000, ge=1, description="Maximum number of characters of a question to /ask")
    query: QueryBounds = QueryBounds()

    @field_validator("rate")
    @classmethod
    def _is_one_rate(cls, rate: str) -> str:
        if not RATE.fullmatch(rate):
            raise ValueError(
                f"{rate!r} is not a rate: write a number above 0 and second, minute or hour, for example 600/minute"
            )
        return rate


def read_release(path: Path) -> Release:
    """Read release.json.

    Raises:
        InputError: The file cannot be read, or a value in it is not valid; the message names the value.
    """
    try:
        release = Release.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); the chart mounts it") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place}: {first['msg']}; fix the chart's values") from error
    names = [model.name for model in release.models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two models have the name {name!r}; give each its own name")
    return release
