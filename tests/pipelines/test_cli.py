import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chatmetrics.components.storage.manifest import stage
from tests.command import finished_process

STEPS = ("preprocess", "distill", "train", "merge", "convert", "evaluate", "serve", "ask")
ON_A_CLUSTER = (
    "submit",
    "status",
    "logs",
    "cancel",
    "resume",
    "reproduce",
    "list",
    "estimate",
    "doctor",
    "deploy",
    "rollback",
    "endpoint",
)
VERBS = ("run", "compile", *STEPS, *ON_A_CLUSTER)


def chatmetrics(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return finished_process(*arguments, environment={**os.environ, "COLUMNS": "200", **environment})


def refused(status: int, *arguments: str | Path) -> str:
    """The one line on standard error of a command that ends with this status."""
    done = chatmetrics(*arguments)
    assert done.returncode == status, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_help_is_quick_and_documents_the_exit_codes() -> None:
    best = 60.0
    for _ in range(3):  # other tests may be running
        started = time.monotonic()
        done = chatmetrics("--help")
        best = min(best, time.monotonic() - started)
    assert done.returncode == 0
    assert all(f" {verb} " in done.stdout for verb in VERBS)
    assert all(f"{code} " in done.stdout for code in (0, 1, 2, 3, 4, 5, 6, 130))
    assert best < 1.5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_names_its_own_options(verb: str) -> None:
    done = chatmetrics(verb, "--help")
    assert done.returncode == 0
    example = re.search(r"Example: chatmetrics (.*)", done.stdout)
    assert example and example[1].startswith(verb)
    assert all(option in done.stdout.split("Example:")[0] for option in re.findall(r"(?<= )--?[a-z]+", example[1]))


def test_wrong_usage_is_2() -> None:
    assert chatmetrics("fly").returncode == 2
    assert chatmetrics("run").returncode == 2
    assert chatmetrics("serve", "model.gguf", "--port", "99999").returncode == 2


def test_a_recipe_that_is_not_there_is_3_and_names_the_nearest() -> None:
    assert "hotel-demo" in refused(3, "run", "hotel-dem")


def test_a_wrong_key_is_3_and_names_the_nearest() -> None:
    line = refused(3, "run", "hotel-demo", "--set", "train.learning_rat=1")
    assert line == "error: --set train.learning_rat: unknown key; did you mean learning_rate?"


def test_a_setting_of_another_step_is_refused_by_a_verb(tmp_path: Path) -> None:
    line = refused(3, "merge", tmp_path, "-o", tmp_path / "out", "--base-model", "x", "--set", "train.epochs=3")
    assert "train.epochs" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("preprocess", "-o", "{out}", "--base-model", "{missing}", "--set", "preprocess.source={missing}"), "missing"),
        (("train", "{missing}", "-o", "{out}", "--base-model", "base"), "missing"),
        (("train", "{missing}", "-o", "{out}"), "--base-model"),
        (("merge", "{missing}", "-o", "{out}", "--base-model", "{missing}"), "missing"),
        (("convert", "{missing}", "-o", "{out}"), "missing"),
        (("evaluate", "{missing}", "-o", "{out}", "--student", "{missing}"), "missing"),
        (("serve", "{missing}"), "missing"),
        (("ask", "how many?", "--db", "{missing}"), "missing"),
    ],
)
def test_a_path_that_is_not_there_is_3_and_named(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    paths = {"missing": tmp_path / "missing", "out": tmp_path / "out"}
    line = refused(3, *(argument.format(**paths) for argument in arguments))
    assert named in line
    assert not (tmp_path / "out").exists()


def test_an_endpoint_that_does_not_answer_is_5(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as connection:
        connection.execute("CREATE TABLE item (name TEXT)")
    line = refused(5, "ask", "how many?", "--db", tmp_path / "shop.sqlite", "--endpoint", "http://127.0.0.1:9")
    assert "127.0.0.1:9" in line


def test_what_keeps_a_model_from_being_deployed_is_told_by_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    candidate = stage((tmp_path / "store").as_uri(), "hotel", "1", [tmp_path / "model.gguf"], {})
    assert "is not published" in refused(3, "deploy", candidate)
    assert "which no pod can read" in refused(3, "deploy", tmp_path)
    assert "no such file" in refused(6, "deploy", (tmp_path / "none").as_uri())
    assert "this verb reads the section deploy only" in refused(3, "deploy", candidate, "--set", "serve.port=1")
    assert "--set deploy.release" in refused(3, "endpoint", "--release", "No-Such")
    done = chatmetrics("endpoint", CHATMETRICS_HELM="no-such-helm")
    assert done.returncode == 5
    assert "no-such-helm is not on the PATH" in done.stderr


def test_a_disk_that_refuses_is_6(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file" in refused(6, "compile", "spider-7b", "-o", tmp_path / "file" / "pipeline.yaml")


def test_a_bug_is_1_with_one_line_and_the_traceback_in_a_file(tmp_path: Path) -> None:
    code = "import sys; from chatmetrics.pipelines import cli; cli.app.command('break')(lambda: {}['key']); cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "break"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    [log] = tmp_path.glob("chatmetrics-error-*.log")
    assert line == f"error: unexpected KeyError: 'key'; traceback: {log}"
    assert "Traceback" in log.read_text()
