"""The client programs: how they are installed in a cache folder, and how they are run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
CACHE = SOURCES.parent.parent / ".cache" / "clients"
SECONDS = 600
CAN_INSTALL = all(map(shutil.which, ("npm", "node", "go")))


@dataclass(frozen=True)
class Program:
    """A program that uses one library or more.

    Attributes:
        command: The command, relative to `folder`.
        folder: Where it runs.
    """

    command: tuple[str, ...]
    folder: Path


def install() -> None:
    """Install the locked packages of all languages, unless they are installed already.

    Raises:
        subprocess.CalledProcessError: A package cannot be installed.
    """
    uv = Path(sys.executable).with_name("uv")
    for lock in sorted((SOURCES / "python").glob("*.lock")):
        folder = CACHE / lock.stem
        if _is_outdated(folder, lock):
            _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder])
            packages = ["--python", folder / "bin" / "python", "--require-hashes", "-r", lock]
            _run([uv, "pip", "install", "--quiet", *packages])
            _note(folder, lock)
    javascript, lock = CACHE / "javascript", SOURCES / "javascript" / "package-lock.json"
    shutil.copytree(lock.parent, javascript, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    if _is_outdated(javascript, lock):
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], javascript)
        _note(javascript, lock)
    environment = {**os.environ, "GOPATH": str(CACHE / "go"), "GOFLAGS": "-modcacherw"}
    _run(["go", "build", "-o", CACHE / "ollama-go", "."], SOURCES / "go", environment)


def programs() -> list[Program]:
    """All programs, as installed."""
    python = SOURCES / "python"
    environments = {"llama_index_client": "llama-index"}
    found = [
        Program((str(CACHE / environments.get(path.stem, "requirements") / "bin" / "python"), path.name), python)
        for path in sorted(python.glob("*_client.py"))
    ]
    scripts = sorted(path.name for path in (SOURCES / "javascript").glob("*.mjs") if path.name != "program.mjs")
    found += [Program(("node", script), CACHE / "javascript") for script in scripts]
    return [*found, Program((str(CACHE / "ollama-go"),), CACHE)]


def results(program: Program, endpoint: str, token: str) -> Iterator[dict[str, Any]]:
    """Run a program; yields what it printed about each use.

    Raises:
        RuntimeError: The program failed; the message has its last output.
    """
    environment = {
        **os.environ,
        "CLIENT_ENDPOINT": endpoint,
        "CLIENT_TOKEN": token,
        "LITELLM_LOCAL_MODEL_COST_MAP": "1",
    }
    done = subprocess.run(
        program.command,
        cwd=program.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(program.command)}: {done.stderr[-2000:]}")
    yield from (json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"'))


def _run(command: list[Any], folder: Path | None = None, environment: dict[str, str] | None = None) -> None:
    subprocess.run(list(map(str, command)), cwd=folder, env=environment, check=True, timeout=SECONDS)


def _is_outdated(folder: Path, lock: Path) -> bool:
    installed = folder / ".installed"
    return not installed.exists() or installed.read_bytes() != lock.read_bytes()


def _note(folder: Path, lock: Path) -> None:
    shutil.copyfile(lock, folder / ".installed")
