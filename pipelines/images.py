"""Builds the steps' images with docker, podman or buildah, signs them, and records their digests."""

import difflib
import hashlib
import json
import platform
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

from chatmetrics.components.console import note
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.image import IMAGES, REGISTRY, containerfile, digests, parent_image, source_hash
from chatmetrics.components.storage.files import atomic_file
from chatmetrics.pipelines.signatures import check_signing, sign

TOOLS = ("docker", "podman", "buildah")
PASSWORD = re.compile(r"//[^/@\s]+@")  # in the URL of an index or a proxy
BASE = "docker.io/library/python:3.11-slim-bookworm"
LAST_LINES, LONGEST_LINE = 4, 160
DOCKER_DIGEST = "{{range .RepoDigests}}{{println .}}{{end}}"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # Python's names and those of images
ARGUMENT = re.compile(r"^ARG (\w+)=?(.*)$", re.MULTILINE)  # a Containerfile's build argument and its default
# Build arguments that say where packages come from. The locks say which packages, by hash.
SOURCES = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT"}
# Build arguments and options that are set here, because the tag depends on them.
OURS = {"BASE": "use --base", "IMAGE": "", "SOURCE_HASH": "", "VERSION": "", "BASE_NAME": "", "BASE_DIGEST": ""}
OUR_OPTIONS = ("--platform", "--arch", "--build-arg", "--from")


@dataclass(frozen=True)
class Base:
    """The image that images are built on, pinned by its digest if that is known.

    `identity` stands for its content in the tags of images built on it: the digest, or the ID of a local image.
    """

    name: str
    digest: str
    identity: str

    @property
    def reference(self) -> str:
        """`name@digest`, or the name alone."""
        return f"{_repository(self.name)}@{self.digest}" if self.digest else self.name


@dataclass(frozen=True)
class Builder:
    """How images are built: the tool, the registry in their names, and more arguments for the tool."""

    tool: str
    registry: str = REGISTRY
    base: str = BASE
    build_args: Sequence[str] = ()
    options: Sequence[str] = ()
    push: bool = False
    platform: str = ""
    sign_key: str = ""

    @property
    def platform_options(self) -> list[str]:
        """Arguments of the tool for a platform that is not this machine's."""
        return ["--platform", self.platform] if self.platform else []


@dataclass(frozen=True)
class BuiltImage:
    """An image that was built. `digest` is the registry's, or "" if it was not pushed."""

    name: str
    hash: str
    tag: str
    digest: str

    @property
    def reference(self) -> str:
        """The reference for pods: by digest if there is one, else by tag."""
        return f"{_repository(self.tag)}@{self.digest}" if self.digest else self.tag


def image_names() -> list[str]:
    """List the images that can be built.

    Raises:
        InputError: the package is not installed from a checkout.
    """
    if not IMAGES.is_dir():
        raise InputError("folder images not found: images are built from a checkout, installed with `make setup`")
    return sorted(path.parent.name for path in IMAGES.glob("*/requirements.lock"))


def find_tool(wanted: str = "") -> str:
    """Return the wanted tool, or the first of docker, podman and buildah that works.

    Raises:
        ServiceError: no tool is installed, or it does not work.
    """
    found = [tool for tool in ([wanted] if wanted else TOOLS) if shutil.which(tool)]
    # The docker command may be installed although its daemon does not run.
    working = next((tool for tool in found if _output([tool, "version"]) is not None), "")
    if working:
        return working
    if found:
        raise ServiceError(f"`{found[0]} version` fails: start its service, or name another tool with --tool")
    raise ServiceError(f"no {wanted or 'docker, podman or buildah'} on the PATH: install a tool that builds images")


def build(names: Iterable[str], builder: Builder, digests_file: Path) -> Iterator[BuiltImage]:
    """Build images and their parent images, record each, and yield it.

    Args:
        names: images; if empty, the images of all steps without their variants.
        builder: how to build them.
        digests_file: gets an entry per image; entries of other images are kept.

    Raises:
        InputError: the package is not installed from a checkout, an image does not exist, a build argument or option
            is not permitted, or images cannot be signed.
        ServiceError: the base is not available, or the tool or cosign failed.
        StorageError: `digests_file` cannot be written.
    """
    order = _order(names or [name for name in image_names() if "-" not in name])
    _check_arguments(builder)
    if builder.sign_key:
        check_signing(builder.sign_key)
    base = find_base(builder)
    done: dict[str, BuiltImage] = {}
    for name in order:
        parent = done.get(parent_image(name))
        if parent:
            # The parent was just built here: name it by its tag, which is on this machine even if it was not pushed.
            # What follows the name in its tag does not depend on the registry, nor on whether it was pushed.
            identity = parent.tag.rpartition(":")[2]
            built = _build(name, builder, parent.tag, Base(parent.tag, parent.digest, identity))
        else:
            built = _build(name, builder, base.reference, base)
        done[name] = built
        _record(built, digests_file)
        yield built


def find_base(builder: Builder) -> Base:
    """Pull the base and look up its digest. A base that exists on this machine only has none, which is noted.

    Raises:
        ServiceError: the base can neither be pulled nor found on this machine.
    """
    name, _, digest = builder.base.partition("@")
    if digest:
        return Base(name, digest, digest)
    is_local = name.startswith("localhost/")
    complaint = "" if is_local else _run([builder.tool, "pull", *builder.platform_options, name])
    digest = "" if is_local or complaint else _registry_digest(builder.tool, name)
    if digest:
        return Base(name, digest, digest)
    image_id = _local_id(builder.tool, name)
    if not image_id:
        why = f"cannot be pulled ({complaint})" if complaint else "is not on this machine"
        raise ServiceError(f"{name} {why}: name a mirror's image with --base")
    why = "cannot be pulled; the local image is used. It" if complaint else "is a local image, so it"
    note(f"{name} {why} is not pinned by a digest, and the tags depend on its ID on this machine")
    return Base(name, "", image_id)


def size(tool: str, reference: str) -> str:
    """Size of a local image as the tool reports it, or "" if there is no such image."""
    # The tool prints one line per name of the image.
    return (_output([tool, "images", "--format", "{{.Size}}", reference]) or "").partition("\n")[0]


def _order(names: Iterable[str]) -> list[str]:
    """Put each image once, after its parent."""
    known = image_names()
    order: list[str] = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0)
            raise InputError(f"image {name!r} does not exist; did you mean {near[0]}? Images: {', '.join(known)}")
        order += [image for image in (parent_image(name), name) if image and image not in order]
    return order


def _build(name: str, builder: Builder, reference: str, base: Base) -> BuiltImage:
    hash = source_hash(name)
    tag = f"{builder.registry}/{name}:{hash}-{_inputs_hash(name, builder, base)}"
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
    command += [*builder.platform_options, *builder.options]
    command += ["--file", str(containerfile(name)), "--tag", tag, str(IMAGES.parent)]
    print(f"{name}: {PASSWORD.sub('//…@', shlex.join(command))}", flush=True)
    complaint = _run(command)
    if complaint:
        raise ServiceError(f"{name}: {builder.tool} could not build it: {complaint}")
    built = BuiltImage(name, hash, tag, _push(tag, builder.tool) if builder.push else "")
    if builder.sign_key:
        sign(built.reference, builder.sign_key)
    return built


def _check_arguments(builder: Builder) -> None:
    if builder.sign_key and not builder.push:
        raise InputError("--sign-key needs --push: a signature is stored in the registry, next to the image")
    for argument in builder.build_args:
        name, equals, _ = argument.partition("=")
        if not equals:
            raise InputError(f"--build-arg {name}: has no value; write KEY=VALUE")
        if name in OURS:
            raise InputError(f"--build-arg {name}: is set by the build{'; ' * bool(OURS[name])}{OURS[name]}")
    for option in builder.options:
        if option.partition("=")[0] in OUR_OPTIONS:
            raise InputError(f"--option {option}: use --platform, --build-arg or --base, on which the tags depend")


def _inputs_hash(name: str, builder: Builder, base: Base) -> str:
    """Hash what makes an image different although its source is the same: base, platform, build arguments.

    Of an image that is named by its digest only the digest counts, so that a mirror's has the same hash.
    """
    given = dict(argument.split("=", 1) for argument in builder.build_args)
    defaults: dict[str, str] = {}
    for key, default in ARGUMENT.findall(containerfile(name).read_text("utf-8")):
        defaults.setdefault(key, default)
    counted = {key: given.get(key, default) for key, default in defaults.items() if key not in {*SOURCES, *OURS}}
    machine = ARCHITECTURES.get(platform.machine(), platform.machine())
    inputs = {
        "base": base.identity,
        "platform": builder.platform or f"linux/{machine}",
        "arguments": {key: value.rpartition("@")[2] for key, value in counted.items()},
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


def _push(tag: str, tool: str) -> str:
    """Push an image and return its digest in the registry."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digest"
        is_docker = Path(tool).name == "docker"
        complaint = _run([tool, "push", *([] if is_docker else ["--digestfile", str(file)]), tag])
        if complaint:
            raise ServiceError(f"{tag} cannot be pushed: {complaint}; log in to the registry with `{tool} login`")
        return _registry_digest(tool, tag) if is_docker else file.read_text("utf-8").strip()


def _registry_digest(tool: str, reference: str) -> str:
    """Digest of an image that was just pulled or pushed."""
    if Path(tool).name == "buildah":
        found = _output([tool, "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", reference])
        return (found or "").strip()
    known = (_output([tool, "image", "inspect", "--format", DOCKER_DIGEST, reference]) or "").split()
    named = (line.partition("@") for line in known)
    return next((digest for repository, _, digest in named if repository in reference), "")


def _local_id(tool: str, name: str) -> str:
    """ID of an image on this machine, which is a hash of its content; "" if it is not here."""
    if Path(tool).name == "buildah":
        found = _output([tool, "inspect", "--type", "image", "--format", "{{.FromImageID}}", name])
    else:
        found = _output([tool, "image", "inspect", "--format", "{{.Id}}", name])
    return (found or "").strip().removeprefix("sha256:")


def _record(built: BuiltImage, path: Path) -> None:
    entry = {"hash": built.hash, "reference": built.reference, "digest": built.digest or None}
    with atomic_file(path) as file:
        file.write(json.dumps({**digests(path), built.name: entry}, indent=2, sort_keys=True).encode() + b"\n")


def _repository(reference: str) -> str:
    """A reference without its tag. The port of a registry is not a tag."""
    head, slash, last = reference.rpartition("/")
    return head + slash + last.partition(":")[0]


def _run(command: Sequence[str]) -> str:
    """Run a command and show its output. Return "", or the last lines of the output if it failed."""
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            text = " ".join(line.split())[:LONGEST_LINE]
            if text and text not in last:
                last.append(text)
    return " | ".join(last) or f"exit status {process.returncode}" if process.returncode else ""


def _output(command: Sequence[str]) -> str | None:
    """Return a quick command's standard output, or None if it failed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    return None if done.returncode else done.stdout
