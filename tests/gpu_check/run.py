"""Runs the checks, each in a process of its own with a time limit, and writes what they found; see __main__.py.

Only the standard library is imported here, so that a machine that lacks a package is told which.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.gpu_check.packages import OPTIONAL, ROOT, Bundle, Package, survey
from tests.gpu_check.report import markdown

FAILED, SKIPPED = "failed", "skipped"
# As `launch.py` sets them for training processes.
ENVIRONMENT = dict.fromkeys(("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"), "expandable_segments:True")
ENVIRONMENT["OMP_WAIT_POLICY"] = "PASSIVE"


LEAST_SECONDS = 10  # a check is not started with less time


@dataclass(frozen=True)
class Check:
    """A check: the name of its function in checks.py, its longest duration in seconds, and what it needs."""

    name: str
    seconds: int
    packages: tuple[str, ...] = (
        *("torch", "transformers", "peft", "accelerate", "datasets"),
        *("pydantic", "sqlglot", "matplotlib"),
    )
    gpus: int = 1


# The most important first: when the time is up, the others are skipped.
CHECKS = (
    Check("flex_kernel", 120, packages=("torch",)),
    Check("flex_model", 100),
    Check("fp16", 60),
    Check("generation", 60),
    Check("speed_0_5b_published", 60),
    Check("speed_0_5b_recommended", 80),
    Check("speed_7b_published", 150),
    Check("speed_7b_recommended", 120),
    Check("two_processes", 90, gpus=2),
    Check("nf4", 60, packages=(*Check.packages, "bitsandbytes")),
)


@dataclass(frozen=True)
class Result:
    """What came of a check: its status, the reason if it did not pass, its duration, and what it measured."""

    check: str
    status: str
    reason: str
    seconds: float
    found: dict[str, Any]


def main() -> int:
    """Run the checks and write gpu-check.json and gpu-check.md; the exit status is 1 if one failed."""
    options = _options()
    started = time.monotonic()
    bundle = Bundle(options.wheels)
    packages = survey(bundle)
    bundle.unpack(options.work / "wheels")
    environment = _environment(options.work)
    for package in packages:
        print(f"gpu-check: {package.name} {package.needed or '(any)'}: {package.found or 'none'}, {package.source}")
    for text in bundle.lacking:
        print(f"gpu-check: the bundle lacks {text}, which one of its packages needs")
    device = _device(packages, environment)
    if device.get("gpus", 0) == 0 and options.device != "cpu":
        print(f"gpu-check: {device.get('reason', 'this machine has no GPU')}; nothing was checked")
        return 0
    chosen = [check for check in CHECKS if not options.checks or check.name in options.checks]
    results = []
    for together in [chosen] if options.one_process else [[check] for check in chosen]:
        left = options.seconds - (time.monotonic() - started)
        results += _run(together, options, packages, device, environment, left)
    seconds = time.monotonic() - started
    print(_write(options.output, device, packages, results, seconds))
    print(f"gpu-check: {seconds:.0f} s; see {options.output}/gpu-check.md")
    return int(any(result.status == FAILED for result in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/gpu_check", description="Check on a GPU what tests cannot run without."
    )
    parser.add_argument("--output", type=Path, default=ROOT / "gpu-check", help="folder for the report")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the same code on a CPU")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the checks themselves")
    parser.add_argument("--one-process", action="store_true", help="no isolation, but packages are imported only once")
    parser.add_argument("--seconds", type=float, default=570, help="longest duration of all checks together")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".cache" / "gpu-check-wheels", help="the bundle's folder")
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(check.name for check in CHECKS))
    options = parser.parse_args()
    unknown = set(options.checks) - {check.name for check in CHECKS}
    if unknown:
        parser.error(f"there is no check {', '.join(sorted(unknown))}")
    return options


def _environment(work: Path) -> dict[str, str]:
    path = os.pathsep.join([str(work / "wheels"), os.environ["PYTHONPATH"]])
    own = {"PYTHONPATH": path, "XDG_CACHE_HOME": str(work / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    return {**ENVIRONMENT, **os.environ, **own}


def _device(packages: list[Package], environment: dict[str, str]) -> dict[str, Any]:
    """The machine's GPUs as torch sees them, asked in another process, so that this one does not use a GPU."""
    if not next(package for package in packages if package.name == "torch").usable:
        return {"gpus": 0, "reason": "torch is not installed"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_check.one", "device"], env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        return {"gpus": 0, "reason": "torch cannot be imported; the message above says why"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _run(
    checks: list[Check],
    options: argparse.Namespace,
    packages: list[Package],
    device: dict[str, Any],
    environment: dict[str, str],
    left: float,
) -> list[Result]:
    """Run checks in one process."""
    skipped = {check.name: why_skipped(check, packages, device, left) for check in checks}
    possible = [check for check in checks if not skipped[check.name]]
    limit = min(sum(check.seconds for check in possible), left)
    ending = wait_for_checks([check.name for check in possible], options, environment, limit) if possible else ""
    results = []
    for check in checks:
        file = options.work / f"{check.name}.json"
        failed = {"status": FAILED, "reason": ending, "seconds": limit, "found": {}}
        if skipped[check.name]:
            result = Result(check.name, SKIPPED, skipped[check.name], 0, {})
        else:
            result = Result(check.name, **(json.loads(file.read_bytes()) if file.exists() else failed))
        print(f"gpu-check: {check.name}: {result.status}{result.reason and ': ' + result.reason}")
        results.append(result)
    return results


def why_skipped(check: Check, packages: list[Package], device: dict[str, Any], left: float) -> str:
    """Why a check cannot run here, or ""."""
    missing = [package.name for package in packages if package.name in check.packages and not package.usable]
    if missing:
        return f"{', '.join(missing)} not installed{' (optional)' * (set(missing) <= set(OPTIONAL))}"
    if check.gpus > max(1, device["gpus"]):
        return f"needs {check.gpus} GPUs, this machine has {device['gpus']}"
    return "no time left" if left < LEAST_SECONDS else ""


def wait_for_checks(names: list[str], options: argparse.Namespace, environment: dict[str, str], limit: float) -> str:
    """Run checks in another process and wait for its end; return how it ended."""
    print(f"gpu-check: {', '.join(names)}, at most {limit:.0f} s")
    command = [sys.executable, "-m", "tests.gpu_check.one", *names, "--work", str(options.work)]
    command += ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        status = process.wait(limit)
        return f"the process ended with exit status {status}; its output says why"
    except subprocess.TimeoutExpired:
        return f"it took longer than {limit:.0f} s"
    finally:
        with suppress(ProcessLookupError):  # also what it has started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _write(folder: Path, device: dict[str, Any], packages: list[Package], results: list[Result], seconds: float) -> str:
    """Write both files and return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "seconds": round(seconds, 1),
        "device": device,
        "packages": [asdict(package) for package in packages],
        "checks": [asdict(result) for result in results],
    }
    (folder / "gpu-check.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    text = markdown(facts)
    (folder / "gpu-check.md").write_text(text, encoding="utf-8")
    return text


def _commit() -> str:
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
