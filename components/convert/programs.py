"""llama.cpp's converter and llama-quantize: their location, and runs of them with progress and a log."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from chatmetrics.components import console
from chatmetrics.components.base_model.llama_cpp import converter_path
from chatmetrics.components.console import Progress
from chatmetrics.components.errors import InputError, ServiceError, StorageError, UserError

MIB = 2**20
LINES_SHOWN = 20
ERROR_MESSAGE = re.compile(r"error|exception|failed|not supported|no space left", re.IGNORECASE)


def converter() -> Path:
    """Find llama.cpp's convert_hf_to_gguf.py: $LLAMA_CPP_CONVERT, or the file that `make setup` installs.

    Raises:
        ServiceError: the file does not exist.
    """
    given = os.environ.get("LLAMA_CPP_CONVERT")
    path = converter_path()
    if not path.is_file():
        advice = "correct LLAMA_CPP_CONVERT" if given else "run `make setup`, or set LLAMA_CPP_CONVERT"
        raise ServiceError(f"llama.cpp's converter is not at {path}: {advice}")
    return path


def llama_quantize() -> str:
    """Find llama-quantize: $LLAMA_QUANTIZE, or the program on the PATH; "" if it is not installed.

    Raises:
        ServiceError: LLAMA_QUANTIZE does not name a program.
    """
    given = os.environ.get("LLAMA_QUANTIZE", "")
    found = shutil.which(given or "llama-quantize") or ""
    if given and not found:
        raise ServiceError(f"LLAMA_QUANTIZE={given} is not an executable program: correct or unset it")
    return found


def run(command: Sequence[str], log: Path, label: str, result: Path, size: int) -> str:
    """Run a program, append its output to `log`, and print progress by the size of its result.

    Args:
        command: program and arguments.
        log: file for standard output and standard error.
        label: name of the work in progress lines and errors.
        result: the file that the program writes.
        size: approximate size of the result in bytes.

    Returns:
        The program's output.

    Raises:
        StorageError: the disk is full.
        ServiceError: the program was killed by a signal.
        InputError: the program failed otherwise; the error contains its message and the path of the log.
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
        text = output.read().decode("utf-8", "replace")
    if process.returncode != 0:
        raise _failure(label, text, process.returncode, log)
    return text


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.1)
    except subprocess.TimeoutExpired:
        return


def _environment() -> dict[str, str]:
    # The converter must import the gguf package next to it, not the one from PyPI, and needs no network.
    inherited = {name: value for name, value in os.environ.items() if name != "NO_LOCAL_GGUF"}
    return {**inherited, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def _failure(label: str, output: str, status: int, log: Path) -> UserError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    messages = [line for line in lines if ERROR_MESSAGE.search(line)]
    reason = (messages or lines or [f"ended with status {status}"])[-1]
    if "no space left" in output.lower():
        return StorageError(f"{label}: the disk is full; free some space or choose another folder ({log})")
    # A pod's log file disappears with the pod, but its output is kept.
    console.info("\n".join(lines[-LINES_SHOWN:]))
    if status < 0:
        return ServiceError(
            f"{label} was killed by signal {-status}, perhaps because it ran out of memory; the full log is {log}"
        )
    return InputError(f"{label} failed: {reason}; the full log is {log}")
