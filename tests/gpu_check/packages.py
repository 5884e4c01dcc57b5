"""Which packages the checks need, which of them this machine has, and which the bundle of wheels can add.

Only the standard library is imported, and `packaging`, which pip contains too.
"""

import importlib
import importlib.metadata
import re
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Of the extra `train`, what a training process imports; the others are for trackers, or for S3.
IMPORTED = ("torch", "transformers", "peft", "accelerate", "datasets", "sqlglot", "matplotlib", "bitsandbytes")
OPTIONAL = ("bitsandbytes",)


@dataclass(frozen=True)
class Package:
    """A package that is needed: what for, and what there is.

    Attributes:
        name: its name on the index.
        needed: the versions that work, in pip's syntax.
        found: the version that is installed; "" if there is none.
        source: installed, bundle, older than needed, or missing.
    """

    name: str
    needed: str
    found: str
    source: str

    @property
    def usable(self) -> bool:
        """Whether a check can try it; an older version may still work."""
        return self.source != "missing"


def packaging(module: str) -> Any:
    """A module of `packaging`, or of pip's copy of it."""
    try:
        return importlib.import_module(f"packaging.{module}")
    except ImportError:
        return importlib.import_module(f"pip._vendor.packaging.{module}")


def required() -> list[Any]:
    """The requirements of a training process, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    parsed = map(packaging("requirements").Requirement, texts)
    return [requirement for requirement in parsed if requirement.name in (*IMPORTED, "pydantic")]


def installed_version(name: str) -> str:
    """The installed version of a package; "" if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


class Bundle:
    """A folder of wheels, of which those are added that are missing here, or older here than needed."""

    def __init__(self, folder: Path) -> None:
        tags = packaging("tags")
        parse = packaging("utils").parse_wheel_filename
        usable = set(tags.sys_tags())
        self._wheels = {}
        for path in sorted(folder.glob("*.whl")):
            name, version, _, wheel_tags = parse(path.name)
            if wheel_tags & usable:
                self._wheels[name] = (path, version)
        self.chosen: dict[str, Path] = {}
        self.lacking: list[str] = []

    def add(self, requirement: Any) -> bool:
        """Choose the wheel that fulfils a requirement and, in turn, those that it requires; whether there is one."""
        name = packaging("utils").canonicalize_name(requirement.name)
        path, version = self._wheels.get(name, (None, None))
        if path is None or not requirement.specifier.contains(version, prereleases=True):
            return False
        if name not in self.chosen:
            self.chosen[name] = path
            for needed in _requirements(path):
                if not _fulfils(needed) and not self.add(needed):
                    self.lacking.append(str(needed))
        return True

    def version(self, name: str) -> str:
        """The version of a package in the bundle."""
        return str(self._wheels[packaging("utils").canonicalize_name(name)][1])

    def unpack(self, target: Path) -> None:
        """Unpack the chosen wheels into a folder for PYTHONPATH."""
        for path in self.chosen.values():
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(target)


def _fulfils(requirement: Any) -> bool:
    found = installed_version(requirement.name)
    return bool(found) and requirement.specifier.contains(found, prereleases=True)


def _requirements(wheel: Path) -> Iterator[Any]:
    """What a wheel requires here, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        headers = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
    for text in headers.get_all("Requires-Dist") or []:
        requirement = packaging("requirements").Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def survey(bundle: Bundle) -> list[Package]:
    """Compare what is needed with what is installed, and choose wheels of the bundle for the rest."""
    packages = []
    for requirement in required():
        found = installed_version(requirement.name)
        if _fulfils(requirement):
            source = "installed"
        elif bundle.add(requirement):
            found, source = bundle.version(requirement.name), "bundle"
        else:
            source = "older than needed" if found else "missing"
        packages.append(Package(requirement.name, str(requirement.specifier), found, source))
    return packages
