import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chatmetrics.components.errors import GateError, StorageError
from chatmetrics.pipelines.local.step_process import run_child, step_error
from chatmetrics.pipelines.steps_view import StepError
from tests.waiting import wait_until

SLEEPER = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def run_python(code: str, log: Path) -> int:
    return run_child([sys.executable, "-c", code], log, lambda line: None)


def test_lines_and_log_and_status(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('one'); print('zwei ü', file=sys.stderr); sys.exit(7)"
    status = run_child([sys.executable, "-c", code], tmp_path / "step.log", lines.append)
    assert (status, lines) == (7, ["one", "zwei ü"])
    assert (tmp_path / "step.log").read_text() == "one\nzwei ü\n"


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("raise errors.GateError('70 % is less than 85 %')", GateError, "step: 70 % is less than 85 % (log: "),
        (
            "from chatmetrics.components.storage.files import AlreadyThereError as E; raise E('x')",
            StorageError,
            "step: x (log: ",
        ),
        (
            "raise OSError(28, 'No space left on device', '/x')",
            StorageError,
            "step: No space left on device: '/x' (log",
        ),
        ("{}['key']", StepError, "step failed: KeyError: 'key' (log: "),
        ("import os; os.kill(os.getpid(), 9)", StepError, "step was killed by SIGKILL"),
        ("import sys; sys.exit(9)", StepError, "step ended with exit status 9"),
    ],
)
def test_the_error_of_a_step_is_one_line(tmp_path: Path, code: str, kind: type[Exception], text: str) -> None:
    log = tmp_path / "step.log"
    status = run_python(f"from chatmetrics.components import errors\n{code}", log)
    error = step_error("step", log, status)
    assert isinstance(error, kind)
    assert str(error).startswith(text)
    assert "\n" not in str(error)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_child_outlives_the_runner(tmp_path: Path, ending: signal.Signals) -> None:
    """Neither the step nor its own child, whether the runner is interrupted or killed."""
    pid_file = tmp_path / "pid"
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}, {str(pid_file)!r}])"
    runner = (
        # A shell starts background jobs, and so their children, with SIGINT ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; from chatmetrics.pipelines.local.step_process import run_child\n"
        f"run_child([sys.executable, '-c', {grandchild!r}], Path({str(tmp_path / 'log')!r}), print)"
    )
    process = subprocess.Popen([sys.executable, "-c", runner], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: pid_file.exists() and pid_file.read_text(), 120)
        sleeper = int(pid_file.read_text())
        assert alive(sleeper)
        os.kill(process.pid, ending)
        wait_until(lambda: not alive(sleeper), 120)
    finally:
        process.kill()
        process.wait()
