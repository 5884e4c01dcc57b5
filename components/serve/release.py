"""What one release of the chart serves: release.json, which the chart renders from its values."""

import re
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from chatmetrics.components.errors import InputError
from chatmetrics.components.settings import Settings

RATE = re.compile(r"([1-9][0-9]*/(second|minute|hour))?")  # as in the chart's values.schema.json


class _Json(Settings):
    model_config = ConfigDict(alias_generator=to_camel)


class ReleasedModel(_Json):
    """A published model and the name under which it answers."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="In requests; the version may follow, `hotel:3`")
    uri: str = Field(min_length=1, description="Folder of a published version, or its manifest.json")
    threshold: float | None = Field(None, ge=0, le=1, description="Replaces the acceptance test's own; 0: none")


class QueryBounds(_Json):
    """What the SQL of an answer may take."""

    seconds: float = Field(5.0, gt=0, description="Time")
    memory_mib: int = Field(512, ge=64, description="Memory")
    rows: int = Field(1000, ge=1, description="Most rows of a result; one with more is refused")


class Release(_Json):
    """All that the pod's containers need to know."""

    models: tuple[ReleasedModel, ...] = Field(min_length=1)
    store: Path = Field(Path("/models"), description="Volume that keeps fetched models")
    served: Path = Field(Path("/served"), description="Its folder of marks, which the proxy may write to")
    ollama: Path = Field(Path("/ollama"), description="Ollama's own folder")
    state: Path = Field(Path("/state"), description="Where Ollama's container sees whether questions are answered")
    keep: int = Field(
        2, ge=1, description="Versions that were served last and stay on the volume, with the one that is now"
    )
    concurrency: int = Field(1, ge=1, description="Questions that Ollama answers at once")
    request_kib: int = Field(1024, ge=1, description="Largest request")
    request_seconds: float = Field(120.0, gt=0, description="Longest answer")
    rate: str = Field("", description="Requests of one client, such as 600/minute; empty: as many as it likes")
    queue: int = Field(64, ge=1, description="Requests that may wait or be answered at once")
    drain_seconds: float = Field(5.0, ge=0, description="How long requests are still accepted once the pod is to end")
    tokens: Path | None = Field(None, description="Folder with a file a client, its token inside; none: all may ask")
    databases: dict[str, Path] = Field({}, description="SQLite files that may be asked about, by name")
    query: QueryBounds = QueryBounds()

    @field_validator("rate")
    @classmethod
    def _is_one_rate(cls, rate: str) -> str:
        if not RATE.fullmatch(rate):
            raise ValueError(f"{rate!r} is no rate: write one number above 0 and second, minute or hour: 600/minute")
        return rate


def read_release(path: Path) -> Release:
    """Read release.json.

    Raises:
        InputError: it cannot be read, or a value in it is wrong; names the value.
    """
    try:
        release = Release.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); the chart mounts it") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place}: {first['msg']}; mend the chart's values") from error
    names = [model.name for model in release.models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: two models are called {twice!r}; give each its own name")
    return release
