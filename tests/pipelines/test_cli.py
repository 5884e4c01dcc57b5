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
    "compile",
    "submit",
    "status",
    "logs",
    "cancel",
    "resume",
    "reproduce",
    "list",
    "doctor",
    "deploy",
    "rollback",
    "endpoint",
)
COMMANDS = ("run", "settings", "estimate", *STEPS, *ON_A_CLUSTER)


def finished(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return finished_process(*arguments, environment={**os.environ, "COLUMNS": "200", **environment})


def error_line(status: int, *arguments: str | Path) -> str:
    """The only line on standard error of a command that ends with this status."""
    done = finished(*arguments)
    assert done.returncode == status, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_help_is_quick_and_documents_the_exit_codes() -> None:
    best = 60.0
    for _ in range(3):  # other tests may be running
        started = time.monotonic()
        done = finished("--help")
        best = min(best, time.monotonic() - started)
    assert done.returncode == 0
    assert all(f" {command} " in done.stdout for command in COMMANDS)
    assert all(f"{code} " in done.stdout for code in (0, 1, 2, 3, 4, 5, 6, 130))
    assert best < 1.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_names_its_own_options(command: str) -> None:
    done = finished(command, "--help")
    assert done.returncode == 0
    options, _, example = done.stdout.partition("Example")
    words = re.search(r"^s?: chatmetrics (.*)", example)
    assert words and words[1].startswith(command)
    assert all(option in options for option in re.findall(r"(?<= )--?[a-z]+", words[1]))


def test_wrong_usage_is_2() -> None:
    assert finished("fly").returncode == 2
    assert finished("run").returncode == 2
    assert finished("serve", "model.gguf", "--port", "99999").returncode == 2


def test_no_arguments_print_the_help() -> None:
    done = finished()
    assert done.returncode == 2
    assert "Usage: chatmetrics [OPTIONS] COMMAND" in done.stdout + done.stderr


def test_a_misspelled_command_is_answered_with_the_closest() -> None:
    assert "Did you mean 'submit'?" in finished("submitt").stderr


def test_the_shell_completes_commands_recipes_pools_and_settings() -> None:
    assert "_chatmetrics_completion" in finished(_CHATMETRICS_COMPLETE="source_bash").stdout

    def completed(*words: str) -> list[str]:
        typed = ["chatmetrics", *words]
        environment = {"COMP_WORDS": " ".join(typed), "COMP_CWORD": str(len(words))}
        return finished(**environment, _CHATMETRICS_COMPLETE="complete_bash").stdout.split()

    assert completed("re") == ["resume", "reproduce"]
    assert completed("run", "sp") == ["spider-7b-schema", "spider-7b", "spider-coder-7b", "spider-laptop"]
    assert completed("submit", "--gpu-pool", "A") == ["A100", "A100-80G"]
    assert completed("run", "hotel-demo", "--set", "distill.synthesis.q") == [
        "distill.synthesis.questions_per_database=",
        "distill.synthesis.query_types=",
        "distill.synthesis.questions_per_request=",
    ]


def test_a_missing_recipe_is_3_and_names_the_closest() -> None:
    assert "hotel-demo" in error_line(3, "run", "hotel-dem")


def test_a_wrong_key_is_3_and_names_the_closest() -> None:
    line = error_line(3, "run", "hotel-demo", "--set", "train.learning_rat=1")
    assert line == "error: --set train.learning_rat: unknown key; did you mean learning_rate?"


def test_a_setting_of_another_step_is_refused(tmp_path: Path) -> None:
    line = error_line(3, "merge", tmp_path, "-o", tmp_path / "out", "--base-model", "x", "--set", "train.epochs=3")
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
def test_a_missing_path_is_3_and_named(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    paths = {"missing": tmp_path / "missing", "out": tmp_path / "out"}
    line = error_line(3, *(argument.format(**paths) for argument in arguments))
    assert named in line
    assert not (tmp_path / "out").exists()


def test_an_endpoint_that_does_not_answer_is_5(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as connection:
        connection.execute("CREATE TABLE item (name TEXT)")
    line = error_line(5, "ask", "how many?", "--db", tmp_path / "shop.sqlite", "--endpoint", "http://127.0.0.1:9")
    assert "127.0.0.1:9" in line


def test_the_exit_code_says_why_a_model_cannot_be_deployed(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    candidate = stage((tmp_path / "store").as_uri(), "hotel", "1", [tmp_path / "model.gguf"], {})
    assert "is not published" in error_line(3, "deploy", candidate)
    assert "which pods cannot read" in error_line(3, "deploy", tmp_path)
    assert "no such file" in error_line(6, "deploy", (tmp_path / "none").as_uri())
    assert "this command reads only the section deploy" in error_line(3, "deploy", candidate, "--set", "serve.port=1")
    assert "--set deploy.release" in error_line(3, "endpoint", "--release", "No-Such")
    done = finished("endpoint", CHATMETRICS_HELM="no-such-helm")
    assert done.returncode == 5
    assert "no-such-helm is not on the PATH" in done.stderr


def test_a_disk_error_is_6(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file" in error_line(6, "compile", "spider-7b", "-o", tmp_path / "file" / "pipeline.yaml")


def test_a_bug_is_1_with_one_line_and_the_traceback_in_a_file(tmp_path: Path) -> None:
    code = "from chatmetrics.pipelines.cli.main import app, main; app.command('break')(lambda: {}['key']); main()"
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
