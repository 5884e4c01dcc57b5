"""Builds the images of the steps with docker, podman or buildah, and records what was built."""

import difflib
import json
import re
import shlex
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.image import IMAGES, REGISTRY, below, containerfile, digests, source_hash
from chatmetrics.components.storage.files import atomic_file

TOOLS = ("docker", "podman", "buildah")
PASSWORD = re.compile(r"//[^/@\s]+@")  # in an index's or a proxy's URL
BASE = "docker.io/library/python:3.11-slim-bookworm"
LAST_LINES, LONGEST_LINE = 4, 160
DOCKER_DIGEST = "{{range .RepoDigests}}{{println .}}{{end}}"


@dataclass(frozen=True)
class Base:
    """What the images stand on: a reference that names one image for good where its digest is known."""

    name: str
    digest: str = ""

    @property
    def reference(self) -> str:
        """`name@digest`, or the name alone."""
        return f"{_repository(self.name)}@{self.digest}" if self.digest else self.name


@dataclass(frozen=True)
class Builder:
    """How images are built: the tool, where they go, and what the tool is told besides."""

    tool: str
    registry: str = REGISTRY
    base: str = BASE
    build_args: Sequence[str] = ()
    options: Sequence[str] = ()
    push: bool = False


@dataclass(frozen=True)
class Built:
    """An image that was built: `digest` is the registry's, "" where it was not pushed."""

    name: str
    hash: str
    tag: str
    digest: str

    @property
    def reference(self) -> str:
        """What a pod names: by digest where there is one."""
        return f"{_repository(self.tag)}@{self.digest}" if self.digest else self.tag


def image_names() -> list[str]:
    """The images that can be built.

    Raises:
        InputError: this is no checkout.
    """
    if not IMAGES.is_dir():
        raise InputError("there is no folder images: images are built from a checkout, installed with `make setup`")
    return sorted(path.parent.name for path in IMAGES.glob("*/requirements.lock"))


def find_tool(wanted: str = "") -> str:
    """The wanted tool, or the first of docker, podman and buildah that works.

    Raises:
        ServiceError: there is none, or the wanted one does not work.
    """
    found = [tool for tool in ([wanted] if wanted else TOOLS) if shutil.which(tool)]
    # A docker command without its daemon is no tool.
    working = next((tool for tool in found if _answer([tool, "version"]) is not None), "")
    if working:
        return working
    if found:
        raise ServiceError(f"`{found[0]} version` fails: start its service, or name another tool with --tool")
    raise ServiceError(f"no {wanted or 'docker, podman or buildah'} on the PATH: install one that builds images")


def build(names: Iterable[str], builder: Builder, digests_file: Path) -> Iterator[Built]:
    """Build images and those below them, record each, and yield it.

    Args:
        names: of images; none means every step's, without the variants.
        builder: how.
        digests_file: what was built is written here; entries of other images stay.

    Raises:
        InputError: this is no checkout, or there is no such image.
        ServiceError: the base is not to be had, or the tool failed.
        StorageError: `digests_file` cannot be written.
    """
    order = _order(names or [name for name in image_names() if "-" not in name])
    base = find_base(builder)
    done: dict[str, Built] = {}
    for name in order:
        lower = done.get(below(name))
        # An image of ours that lies below is this machine's, whatever digest a registry gave it.
        reference, labelled = (lower.tag, Base(lower.tag, lower.digest)) if lower else (base.reference, base)
        done[name] = built = _build(name, builder, reference, labelled)
        _record(built, digests_file)
        yield built


def find_base(builder: Builder) -> Base:
    """Pull the base and look its digest up, which pins it; one of this machine alone has none, and a line says so.

    Raises:
        ServiceError: it can neither be pulled nor found on this machine.
    """
    name, _, digest = builder.base.partition("@")
    if digest:
        return Base(name, digest)
    if name.startswith("localhost/"):
        print(f"note: {name} is of this machine, so that no digest pins it", flush=True)
        return Base(name)
    complaint = _run([builder.tool, "pull", name])
    if not complaint:
        return Base(name, _registry_digest(builder.tool, name))
    if _answer([builder.tool, "inspect", name]) is None:
        raise ServiceError(f"{name} cannot be pulled ({complaint}): name the image of a mirror with --base")
    print(f"note: {name} cannot be pulled; this machine's is taken, and no digest pins it", flush=True)
    return Base(name)


def size(tool: str, reference: str) -> str:
    """Size of an image of this machine, as the tool says it; "" where there is none."""
    # A line for each name that the image has.
    return (_answer([tool, "images", "--format", "{{.Size}}", reference]) or "").partition("\n")[0]


def _order(names: Iterable[str]) -> list[str]:
    """Each image once, after the one below it."""
    known = image_names()
    order: list[str] = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0)
            raise InputError(f"there is no image {name!r}; did you mean {near[0]}? There are {', '.join(known)}")
        order += [part for part in (below(name), name) if part and part not in order]
    return order


def _build(name: str, builder: Builder, reference: str, base: Base) -> Built:
    hash = source_hash(name)
    tag = f"{builder.registry}/{name}:{hash}"
    values = {
        "BASE": reference,
        "IMAGE": name,
        "SOURCE_HASH": hash,
        "VERSION": metadata.version("chatmetrics"),
        "BASE_NAME": base.name,
        "BASE_DIGEST": base.digest,
    }
    arguments = [*(f"{key}={value}" for key, value in values.items()), *builder.build_args]
    command = [builder.tool, "build", *(["--layers"] if Path(builder.tool).name == "buildah" else [])]
    command += [word for argument in arguments for word in ("--build-arg", argument)]
    command += [*builder.options, "--file", str(containerfile(name)), "--tag", tag, str(IMAGES.parent)]
    print(f"{name}: {PASSWORD.sub('//…@', shlex.join(command))}", flush=True)
    if complaint := _run(command):
        raise ServiceError(f"{name}: {builder.tool} could not build it: {complaint}")
    return Built(name, hash, tag, _push(tag, builder.tool) if builder.push else "")


def _push(tag: str, tool: str) -> str:
    """Push an image and return the digest that the registry knows it by."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digest"
        is_docker = Path(tool).name == "docker"
        if complaint := _run([tool, "push", *([] if is_docker else ["--digestfile", str(file)]), tag]):
            raise ServiceError(f"{tag} cannot be pushed: {complaint}; log in to the registry with `{tool} login`")
        return _registry_digest(tool, tag) if is_docker else file.read_text("utf-8").strip()


def _registry_digest(tool: str, reference: str) -> str:
    """Digest of an image that was pulled or pushed just now."""
    if Path(tool).name == "buildah":
        return (
            _answer([tool, "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", reference]) or ""
        ).strip()
    known = (_answer([tool, "image", "inspect", "--format", DOCKER_DIGEST, reference]) or "").split()
    mine = [digest for repository, _, digest in (line.partition("@") for line in known) if repository in reference]
    return next(iter(mine), "")


def _record(built: Built, path: Path) -> None:
    entry = {"hash": built.hash, "reference": built.reference, "digest": built.digest or None}
    with atomic_file(path) as file:
        file.write(json.dumps({**digests(path), built.name: entry}, indent=2, sort_keys=True).encode() + b"\n")


def _repository(reference: str) -> str:
    """A reference without its tag; a registry's port is none."""
    head, slash, last = reference.rpartition("/")
    return head + slash + last.partition(":")[0]


def _run(command: Sequence[str]) -> str:
    """Run a command whose output is shown; returns "", or the last lines of it when it failed."""
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            said = " ".join(line.split())[:LONGEST_LINE]
            if said and said not in last:
                last.append(said)
    return " | ".join(last) or f"exit status {process.returncode}" if process.returncode else ""


def _answer(command: Sequence[str]) -> str | None:
    """What a quick command says; None when it failed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    return None if done.returncode else done.stdout
