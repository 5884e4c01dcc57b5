"""The distribution: every folder of code is a package of it, and the names are the house's."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from chatmetrics.components.image import image

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
STEPS = ("preprocess", "distill", "train", "merge", "convert", "evaluate", "serve", "deploy")


def test_every_folder_of_code_is_packaged() -> None:
    folders = {path.parent for top in ("components", "pipelines") for path in (ROOT / top).rglob("__init__.py")}
    names = {"chatmetrics." + ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    # The chart is no code, but goes along: `chatmetrics deploy` takes it from beside `components`.
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names | {"chatmetrics.helm"}


def test_a_wheel_has_what_is_not_code_too(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(ROOT)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in ("Chart.yaml", "values.schema.json", "templates/_helpers.tpl", "templates/tests/pod-smoke.yaml"):
        assert f"chatmetrics/helm/chatmetrics-ollama/{file}" in names
    assert {"chatmetrics/components/serve/ask.html", "chatmetrics/pipelines/recipes/hotel-demo.yaml"} <= names


@pytest.mark.parametrize("step", STEPS)
def test_a_step_has_one_name(step: str) -> None:
    assert step in PROJECT["project"]["optional-dependencies"]
    assert (ROOT / "components" / step / "README.md").is_file()
    assert image(step).startswith(f"chatmetrics/{step}:")


def test_images_of_different_sources_differ() -> None:
    assert len({image(step) for step in STEPS}) == len(STEPS)
