"""llama.cpp's converter and llama-quantize: where they are, and running them with progress and a log."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from chatmetrics.components.console import Progress
from chatmetrics.components.errors import InputError, ServiceError, StorageError, UserError

MIB = 2**20
LINES_SHOWN = 20
COMPLAINT = re.compile(r"error|exception|failed|not supported|no space left", re.IGNORECASE)


def converter() -> Path:
    """llama.cpp's convert_hf_to_gguf.py: $LLAMA_CPP_CONVERT, or where `make setup` puts it.

    Raises:
        ServiceError: it is not there.
    """
    given = os.environ.get("LLAMA_CPP_CONVERT")
    path = Path(given or Path(sys.prefix, "share", "llama.cpp", "convert_hf_to_gguf.py"))
    if not path.is_file():
        advice = "correct LLAMA_CPP_CONVERT" if given else "run `make setup`, or set LLAMA_CPP_CONVERT"
        raise ServiceError(f"llama.cpp's converter is not at {path}: {advice}")
    return path


def llama_quantize() -> str:
    """The program llama-quantize: $LLAMA_QUANTIZE, or the one on the PATH, or "" when there is none.

    Raises:
        ServiceError: LLAMA_QUANTIZE names no program.
    """
    given = os.environ.get("LLAMA_QUANTIZE", "")
    found = shutil.which(given or "llama-quantize") or ""
    if given and not found:
        raise ServiceError(f"LLAMA_QUANTIZE={given} is no program that can be run: correct or unset it")
    return found


def run(command: Sequence[str], log: Path, label: str, result: Path, size: int) -> str:
    """Run a program to its end, its output appended to `log`, with progress by the growth of its result.

    Args:
        command: program and arguments.
        log: file that gets standard output and standard error.
        label: names the work in progress lines and errors.
        result: the file that the program writes.
        size: bytes that the result will have, roughly.

    Returns:
        What the program wrote.

    Raises:
        StorageError: the disk is full.
        InputError: the program failed otherwise; the error holds its complaint and the path of the log.
    """
    total = size // MIB + 1
    progress = Progress(label, total, "MiB")
    with log.open("a+b") as output:
        begin = output.tell()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=_environment()
        ) as process:
            try:
                while process.poll() is None:
                    written = result.stat().st_size if result.exists() else 0
                    progress.update(min(written // MIB, total - 1))
                    _wait(process)
            finally:
                if process.poll() is None:
                    process.terminate()
        output.seek(begin)
        said = output.read().decode("utf-8", "replace")
    if process.returncode != 0:
        raise _failure(label, said, process.returncode, log)
    return said


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return


def _environment() -> dict[str, str]:
    # The converter must import the gguf package beside it and not the one from PyPI; it needs no network.
    inherited = {name: value for name, value in os.environ.items() if name != "NO_LOCAL_GGUF"}
    return {**inherited, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def _failure(label: str, said: str, status: int, log: Path) -> UserError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line for line in lines if COMPLAINT.search(line)]
    reason = (complaints or lines or [f"ended with status {status}"])[-1]
    if "no space left" in said.lower():
        return StorageError(f"{label}: the disk is full; free some space or choose another folder ({log})")
    # In a pod the log file is gone with the pod; what is printed is kept.
    print("\n".join(lines[-LINES_SHOWN:]), file=sys.stderr, flush=True)
    if status < 0:
        return ServiceError(
            f"{label} was killed by signal {-status}, perhaps for want of memory; the full log is {log}"
        )
    return InputError(f"{label} failed: {reason}; the full log is {log}")
