from collections.abc import Callable
from pathlib import Path

import pytest

from chatmetrics.components.storage.manifest import publish, stage

Publish = Callable[..., str]


@pytest.fixture
def candidate(tmp_path: Path) -> Publish:
    """Return a function that stages a model of `mib` MiB, as a sparse file, and returns candidate.json's URI."""

    def make(name: str = "hotel", version: str = "1", mib: int = 1) -> str:
        gguf = tmp_path / f"{name}-{version}.gguf"
        with gguf.open("wb") as file:
            file.write(name.encode() + version.encode())
            file.truncate(mib * 2**20)
        return stage((tmp_path / "store").as_uri(), name, version, [gguf], {})

    return make


@pytest.fixture
def model(candidate: Publish) -> Publish:
    """Return a function that stages and publishes a model, and returns manifest.json's URI."""
    return lambda *given, **named: publish(candidate(*given, **named))
