"""A step's time after SIGTERM, with a shell in place of KFP's launcher: like it, a shell ends at SIGTERM."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import wait_until

STEP = """
import os, pathlib, signal, sys, time
from chatmetrics.components.kfp_launcher import launcher_held
from chatmetrics.components.train.launch import exit_on_sigterm

folder = pathlib.Path(sys.argv[1])
with {block}:
    try:
        (folder / "pid").write_text(str(os.getpid()))
        (folder / "ready").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        for _ in range(10_000):
            print("in the block")
    except SystemExit:
        time.sleep(2)  # longer than a container lives after its first process
        (folder / "checkpoint").touch()
        raise
print("after the block")
time.sleep(0.2)
"""
HELD = "launcher_held(), exit_on_sigterm()"


# As KFP's launcher does when it publishes logs, the shell itself copies what the step prints.
COPYING = 'mkfifo {0}/fifo; {{ {1} > {0}/fifo & }}; while read -r line; do echo "$line"; done < {0}/fifo; wait'


def start(folder: Path, block: str = HELD, copies: bool = False) -> "subprocess.Popen[str]":
    """Start a container: a launcher that runs the step, in a process group of their own."""
    (folder / "step.py").write_text(STEP.format(block=block))
    step = f"{sys.executable} {folder}/step.py {folder}"
    script = (COPYING.format(folder, step) if copies else step) + "; echo launcher continued"
    launcher = subprocess.Popen(
        ["/kfp-launcher/launch", "-c", script],
        executable="/bin/sh",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until((folder / "ready").exists, 60)
    return launcher


def end_container(launcher: "subprocess.Popen[str]") -> None:
    """Wait for the launcher, and kill what it leaves, as a container's end does."""
    launcher.wait(60)
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)


def is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize(("block", "saved"), [(HELD, True), ("exit_on_sigterm()", False)])
def test_a_held_launcher_leaves_time_to_save_a_checkpoint(block: str, saved: bool, tmp_path: Path) -> None:
    launcher = start(tmp_path, block)
    os.killpg(launcher.pid, signal.SIGTERM)
    end_container(launcher)
    assert launcher.returncode == -signal.SIGTERM  # never a success
    assert (tmp_path / "checkpoint").exists() is saved


def test_the_launcher_continues_after_the_block(tmp_path: Path) -> None:
    launcher = start(tmp_path)
    wait_until(lambda: is_stopped(launcher.pid), 60)  # SIGSTOP takes a moment
    (tmp_path / "go").touch()
    assert "launcher continued" in launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 0


def test_the_launcher_continues_when_the_step_is_killed(tmp_path: Path) -> None:
    launcher = start(tmp_path)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert "launcher continued" in launcher.communicate(timeout=60)[0]


def test_output_does_not_wait_for_a_launcher_that_copies_it(tmp_path: Path) -> None:
    launcher = start(tmp_path, copies=True)
    wait_until(lambda: is_stopped(launcher.pid), 60)  # SIGSTOP takes a moment
    (tmp_path / "go").touch()
    output = launcher.communicate(timeout=60)[0]
    assert output.count("in the block") == 10_000  # more than a pipe holds
    assert output.endswith("after the block\nlauncher continued\n")
