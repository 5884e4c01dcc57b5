"""Collects the wheels of what training imports, for a machine with a GPU and without a package index.

    python -m tests.gpu_check.bundle [--python 3.12] [--with bitsandbytes] [--without NAME ...] [--output FOLDER]

The packages are those of the train image, by version and hash. torch, what it requires, and numpy are left out, since
such a machine has them. Carry the folder to the same place in the checkout there; gpu-check adds what is missing.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Set
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.gpu_check.packages import OPTIONAL, ROOT, required

LOCK = ROOT / "images" / "train" / "requirements.lock"
# pip takes a wheel only if its platform is named; these are of glibc 2.17 to 2.39.
GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 39)


def closure(names: set[str], python: str, without: Set[str] = frozenset(), machine: str = "x86_64") -> set[str]:
    """The packages and all that they require on Linux with this version of Python, by normalized name.

    Packages in `without` are left out, with what only they require.
    """
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    environment["platform_machine"] = machine
    found: set[str] = set()
    todo = {canonicalize_name(name) for name in names} - without
    while todo:
        name = todo.pop()
        found.add(name)
        for text in requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                todo |= {canonicalize_name(requirement.name)} - found - without
    return found


def lock_entries(names: set[str]) -> Iterator[str]:
    """The entries of the train image's lock, with their hashes, for these packages."""
    for entry in re.split(r"(?m)^(?=[a-z0-9])", LOCK.read_text(encoding="utf-8")):
        if canonicalize_name(entry.partition("==")[0]) in names:
            yield entry


def main() -> None:
    """Download the wheels and print their size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="version of Python on the machine with the GPU")
    parser.add_argument(
        "--with", nargs="*", default=[], choices=OPTIONAL, dest="optional", help="large packages to add"
    )
    parser.add_argument("--without", nargs="*", default=[], help="packages to leave out, with what only they require")
    parser.add_argument("--machine", default="x86_64", help="its processor")
    parser.add_argument("--output", type=Path, default=ROOT / ".cache" / "gpu-check-wheels")
    options = parser.parse_args()
    left_out = closure({"torch"}, options.python, machine=options.machine) | {
        "numpy",
        *map(canonicalize_name, options.without),
    }
    optional = set(OPTIONAL) - set(options.optional)
    wanted = {requirement.name for requirement in required()} - optional
    entries = list(lock_entries(closure(wanted, options.python, left_out, options.machine)))
    platforms = [f"--platform=manylinux_2_{minor}_{options.machine}" for minor in GLIBC]
    platforms += [f"--platform=manylinux2014_{options.machine}", f"--platform=manylinux1_{options.machine}"]
    options.output.mkdir(parents=True, exist_ok=True)
    for old in options.output.glob("*.whl"):
        old.unlink()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(entries))
        file.flush()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={options.python}", *platforms]
        subprocess.run([*command, "--require-hashes", "-r", file.name, "-d", str(options.output)], check=True)
    wheels = sorted(options.output.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels for Python {options.python}, {size / 2**20:.1f} MiB, in {options.output}")


if __name__ == "__main__":
    main()
