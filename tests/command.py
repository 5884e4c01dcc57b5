"""The `chatmetrics` command as tests run it: in a process of its own."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def command_line(*arguments: str | Path) -> list[str]:
    """The words that start `chatmetrics` with these arguments, from this source tree."""
    return [sys.executable, "-c", "from chatmetrics.pipelines.cli.main import main; main()", *map(str, arguments)]


def finished_process(
    *arguments: str | Path,
    timeout: float = 120,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """`chatmetrics` after it has ended, with its exit status and its output as text.

    Args:
        arguments: of the command.
        timeout: in seconds; subprocess.TimeoutExpired is raised after it.
        environment: the whole environment of the process; None is this process's own.
        folder: the working directory; None is this process's own.
    """
    return subprocess.run(
        command_line(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=folder,
        check=False,
    )
