"""The distribution: its packages, its files that are not code, and the names of the steps."""

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
    # The chart is not code, but is installed too: `chatmetrics deploy` finds it next to `components`.
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names | {"chatmetrics.helm"}


def test_wheel_contains_the_files_that_are_not_code(tmp_path: Path) -> None:
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in ("Chart.yaml", "values.schema.json", "templates/_helpers.tpl", "templates/tests/pod-smoke.yaml"):
        assert f"chatmetrics/helm/chatmetrics-ollama/{file}" in names
    assert {"chatmetrics/components/serve/ask.html", "chatmetrics/pipelines/recipes/hotel-demo.yaml"} <= names
    assert f"chatmetrics-{PROJECT['project']['version']}.dist-info/licenses/LICENSE" in names


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert [f"   {number}. " in text for number in range(1, 10)] == [True] * 9
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("step", STEPS)
def test_a_step_has_one_name(step: str) -> None:
    assert step in PROJECT["project"]["optional-dependencies"]
    assert (ROOT / "components" / step / "README.md").is_file()
    assert image(step).startswith(f"chatmetrics/{step}:")


def test_images_of_different_sources_differ() -> None:
    assert len({image(step) for step in STEPS}) == len(STEPS)
