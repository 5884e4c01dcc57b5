"""Running programs, with their output in a log and their failure in one line."""

import sys
from pathlib import Path

import pytest

from chatmetrics.components.convert.programs import run
from chatmetrics.components.errors import InputError, StorageError


def python_command(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_a_program_s_output_is_returned_and_logged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run(python_command("print('one')"), log, "one", tmp_path / "x", 0) == "one\n"
    assert run(python_command("import sys; print('two', file=sys.stderr)"), log, "two", tmp_path / "x", 0) == "two\n"
    assert log.read_text() == "one\ntwo\n"


def test_a_failure_is_an_error_with_its_message_in_one_line(tmp_path: Path) -> None:
    program = python_command("print('ok'); print('ValueError: no such thing'); print('goodbye'); raise SystemExit(3)")
    with pytest.raises(InputError) as caught:
        run(program, tmp_path / "log", "converting x", tmp_path / "x", 0)
    assert str(caught.value) == f"converting x failed: ValueError: no such thing; the full log is {tmp_path / 'log'}"


def test_a_silent_failure_is_an_error_with_its_status(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ended with status 3;"):
        run(python_command("raise SystemExit(3)"), tmp_path / "log", "x", tmp_path / "x", 0)


def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the disk is full"):
        run(python_command("open('/dev/full', 'w', 1).write('x\\n')"), tmp_path / "log", "x", tmp_path / "x", 0)


def test_progress_follows_the_growing_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = f"""
import time
with open({str(tmp_path / "x")!r}, "wb") as file:
    file.write(bytes(3 * 2**20)); file.flush(); time.sleep(3)
"""
    run(python_command(program), tmp_path / "log", "copying", tmp_path / "x", 4 * 2**20)
    assert "copying: 3/5 MiB" in capfd.readouterr().err
