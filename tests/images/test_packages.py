"""The pipeline with each step's Python limited to the packages and the code of its image."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import distribution
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from chatmetrics.components.convert.programs import converter
from chatmetrics.components.image import HERE as COMPONENTS
from chatmetrics.components.image import IMAGES, SHARED
from chatmetrics.pipelines.cli.main import app
from chatmetrics.pipelines.local import kfp_hooks
from tests.images.locks import installed

# A Python without the packages of the environment that the tests run in.
BARE_PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
# Tasks whose image has another name. The exit handler and the gate run in evaluate's.
IMAGE_OF_TASK = {"gate": "evaluate", "outcome": "evaluate"}
SMALL = {
    "preprocess.limit": 24,
    "distill.samples": 1,
    "train.max_steps": 2,
    "evaluate.limit": 4,
    "evaluate.acceptance_test_questions": 0,
    "evaluate.gate": 0,
    "evaluate.gate_split": "",
    "evaluate.gate_teacher": "null",
}


def lay_out(image: str, folder: Path) -> Path:
    """Link the packages of an image's locks, and the code that it contains, as in the image.

    Returns:
        The folder for PYTHONPATH.
    """
    for name in installed(image):
        for file in distribution(name).files or []:
            top = file.parts[0]
            source, target = Path(str(distribution(name).locate_file(top))), folder / top
            if top != ".." and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)
    code = folder / "chatmetrics" / "components"
    code.mkdir(parents=True)
    for path in (*COMPONENTS.glob("*.py"), *(COMPONENTS / name for name in (*SHARED, image))):
        (code / path.name).symlink_to(path)
    return folder


@pytest.fixture
def in_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Run each step as its image would; the images by task, filled as tasks start."""
    run_child = kfp_hooks.run_child
    used: dict[str, str] = {}

    def run_in_image(command: Sequence[str], log: Path, on_line: Callable[[str], None]) -> int:
        task = log.stem
        image = IMAGE_OF_TASK.get(task, task.partition("-")[0])
        folder = tmp_path / "images" / image
        if not folder.exists():
            lay_out(image, folder)
        used[task] = image
        variables = {"PYTHONPATH": folder, "PYTHONNOUSERSITE": 1, "LLAMA_CPP_CONVERT": converter()}
        words = [word.replace(sys.executable, str(BARE_PYTHON)) for word in command]
        return run_child(["env", *(f"{name}={value}" for name, value in variables.items()), *words], log, on_line)

    monkeypatch.setattr(kfp_hooks, "run_child", run_in_image)
    return used


@pytest.mark.exhaustive
def test_each_step_runs_with_the_packages_of_its_image(in_images: dict[str, str], tmp_path: Path) -> None:
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    done = CliRunner().invoke(app, ["run", "hotel-demo", "--work-dir", str(tmp_path / "work"), "--no-ask", *settings])
    assert done.exit_code == 0, done.output + str(done.exception)
    steps = {path.parent.name for path in IMAGES.glob("*/requirements.lock")} - {"deploy", "serve"}
    assert set(in_images.values()) == {name for name in steps if "torch" not in name and "-" not in name}


def test_a_package_that_an_image_lacks_cannot_be_imported(tmp_path: Path) -> None:
    folder = lay_out("preprocess", tmp_path / "packages")
    command = f"PYTHONPATH={folder} {BARE_PYTHON} -c 'import sqlglot, chatmetrics.components.nl2sql; import torch'"
    assert os.system(f"{command} 2> {tmp_path}/error") != 0
    assert "No module named 'torch'" in (tmp_path / "error").read_text("utf-8")


@pytest.mark.parametrize("image", ["preprocess", "distill", "train", "evaluate", "serve"])
@pytest.mark.parametrize("suffix", ["duckdb", "sqlite"])
def test_queries_run_in_each_image(image: str, suffix: str, tmp_path: Path) -> None:
    """Queries run in processes of their own, which find the image's packages too."""
    (tmp_path / "databases").mkdir()
    file = tmp_path / "databases" / f"shop.{suffix}"
    with closing(duckdb.connect(str(file)) if suffix == "duckdb" else sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE item AS SELECT 'tea' AS name")
        connection.commit()
    where = f"duckdb:///{tmp_path}/databases/{{db_id}}.duckdb" if suffix == "duckdb" else str(file.parent)
    program = (
        "import sys; from chatmetrics.components.nl2sql.databases.databases import open_databases\n"
        "with open_databases(sys.argv[1], 10) as databases:\n"
        "    print(databases.execute('shop', ['SELECT name FROM item'])[0].rows)\n"
    )
    folder = lay_out(image, tmp_path / "packages")
    done = subprocess.run(
        [BARE_PYTHON, "-c", program, where],
        env={"PYTHONPATH": str(folder), "PYTHONNOUSERSITE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[('tea',)]\n", done.stderr
