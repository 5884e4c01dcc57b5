"""Checks on a GPU what the tests cannot run without one, in less than ten minutes.

    python3 tests/gpu_check [--output FOLDER] [--device cuda|cpu] [--tiny] [--seconds N] [--wheels FOLDER] [CHECK ...]

It runs from the checkout, which need not be installed, with whatever packages `python3` has; docs/training.md describes
it. `make gpu-check` runs it, and `make gpu-check-bundle` collects packages that the machine with the GPU may lack.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run tests/gpu_check/run.py with the checkout's packages under the names that they have when installed."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        names = Path(folder) / "names"
        (names / "chatmetrics").mkdir(parents=True)
        (names / "chatmetrics" / "components").symlink_to(ROOT / "components")
        # A regular package, because an installed package named `tests` would hide a folder without __init__.py.
        (names / "tests").mkdir()
        (names / "tests" / "__init__.py").write_text(f"__path__ = [{str(ROOT / 'tests')!r}]\n", encoding="utf-8")
        own = [str(names), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(own), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "tests.gpu_check.run", "--work", folder, *sys.argv[1:]]
        return subprocess.call(command, env=environment)


if __name__ == "__main__":
    sys.exit(main())
