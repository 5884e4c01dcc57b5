import shutil
from pathlib import Path

import pytest

from tests.gguf_files import tiny_gguf


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(
    scope="session",
    params=[
        "llama.cpp",
        pytest.param("ollama", marks=pytest.mark.skipif(not shutil.which("ollama"), reason="ollama is not on PATH")),
    ],
)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)
