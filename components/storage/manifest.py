"""Models in the store. A model is a candidate when its files are stored, and published when its manifest is."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.files import MIB, AlreadyThereError, atomic_file, sha256_of
from chatmetrics.components.storage.signature import SIGNATURE, sign, verify
from chatmetrics.components.storage.store import open_store

CANDIDATE = "candidate.json"
MANIFEST = "manifest.json"
ACCEPTANCE_TEST = "acceptance_test-*.json"
MAX_BYTES = 16 * MIB  # of a manifest; they have some kilobytes
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r}: use letters, digits, '.', '_' and '-', a letter or digit first")
    return name


# A name or version of a model. It is a part of paths and comes from a bucket, so a slash is refused.
ModelName = Annotated[str, AfterValidator(_checked_name)]


class ModelFile(BaseModel):
    """One file of a published model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="File name, in the manifest's folder", pattern=r"^[\w][\w.-]*$")
    size: int = Field(description="Size in bytes", ge=0)
    sha256: str = Field(description="Hexadecimal sha256", pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """A model's files, how to serve it, and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ModelName = Field(description="Name of the model")
    version: ModelName = Field(description="Version of the model")
    created: datetime = Field(description="Time of publication, UTC")
    files: tuple[ModelFile, ...] = Field(description="Files in the manifest's folder", min_length=1)
    quantization: str = Field(default="", description="llama.cpp's name of the mix, for example Q4_K_M")
    fallbacks: dict[str, str] = Field(default={}, description="Tensors that do not fit the mix, with the type used")
    prompt_template: str = Field(default="", description="Prompt without BOS, with {placeholders}")
    schema_form: str = Field(
        default="", description="Form of the schema in prompts: none, ddl or m-schema; empty if unknown"
    )
    sample_values: int = Field(default=0, description="Number of sample values per column in the schema", ge=0)
    cutoff_length: int = Field(default=0, description="Maximum tokens of prompt and answer in training", ge=0)
    context_length: int = Field(default=0, description="Context length for serving; 0 for the server's default", ge=0)
    stop: tuple[str, ...] = Field(default=(), description="Tokens that end an answer")
    provenance: dict[str, str] = Field(
        default={},
        description="Hashes of what the model was made from, for example dataset, base and adapter, and the ids of the "
        "dev questions that chose the adapter",
    )
    evaluation: dict[str, JsonValue] | None = Field(default=None, description="Summary of the scores")
    acceptance_test: str = Field(default="", description="File name of the acceptance test; empty if there is none")

    @field_validator("acceptance_test")
    @classmethod
    def _is_listed(cls, name: str, info: ValidationInfo) -> str:
        if name and name not in {file.name for file in info.data.get("files", ())}:
            raise ValueError(f"{name!r} is not one of the files")
        return name

    def same_content(self, other: "Manifest") -> bool:
        """Whether two manifests are equal apart from their date."""
        return self.model_copy(update={"created": other.created}) == other


def stage(models_uri: str, name: str, version: str, files: Sequence[Path], description: Mapping[str, Any]) -> str:
    """Store files and then candidate.json under models_uri/name/version/. Staging the same again changes nothing.

    A candidate can be fetched and evaluated, but it is not published: servers do not see it.

    Args:
        models_uri: folder, file:// or s3://bucket/prefix.
        name: name of the model: letters, digits, `.`, `_` and `-`.
        version: version, in the same characters. Empty takes the first 12 hexadecimal digits of a hash of files and
            description.
        files: the files, stored under their own names.
        description: the other fields of Manifest.

    Returns:
        The URI of candidate.json.

    Raises:
        InputError: a name or a field of the description is not valid.
        AlreadyThereError: the version exists with other content.
        StorageError: the store failed.
    """
    manifest = _manifest(name, version, files, description)
    store = open_store(models_uri)
    folder = f"{name}/{manifest.version}"
    uri = store.uri(f"{folder}/{CANDIDATE}")
    if not store.exists(f"{folder}/{CANDIDATE}"):
        for path in files:
            store.put_file(path, f"{folder}/{path.name}")
        _put(manifest, uri)
    if not manifest.same_content(read_manifest(uri)):
        raise AlreadyThereError(f"{uri} has other content; choose another version")
    return uri


def publish(
    candidate_uri: str, evaluation: Mapping[str, Any] | None = None, acceptance_test: Path | None = None
) -> str:
    """Write the manifest of a candidate, which makes it a published model; returns the manifest's URI.

    A version is never rewritten: if it is already published, its manifest does not change, and neither do its scores
    and acceptance test.

    Args:
        candidate_uri: the URI that `stage` returned.
        evaluation: summary of the scores, for the manifest.
        acceptance_test: folder that evaluate wrote; its files are published too.

    Raises:
        InputError: the folder does not contain exactly one acceptance test.
        StorageError: the candidate does not exist, or the store failed.
    """
    candidate = read_manifest(candidate_uri)
    folder = _split(candidate_uri)[0]
    uri = f"{folder}/{MANIFEST}"
    if not open_store(folder).exists(MANIFEST):
        complete = _with_acceptance_test(candidate, folder, acceptance_test) if acceptance_test else candidate
        _put(complete.model_copy(update={"evaluation": evaluation, "created": datetime.now(UTC)}), uri)
    if not candidate.same_content(_as_staged(read_manifest(uri), candidate)):
        raise AlreadyThereError(f"{uri} is published with other content; choose another version")
    return uri


def _with_acceptance_test(candidate: Manifest, folder_uri: str, acceptance_test: Path) -> Manifest:
    """Store the files of an acceptance test in the candidate's folder, and append them to its list of files."""
    names = [path.name for path in acceptance_test.glob(ACCEPTANCE_TEST)]
    if len(names) != 1:
        raise InputError(
            f"{acceptance_test} contains {len(names)} files {ACCEPTANCE_TEST}, expected one; evaluate the model again"
        )
    paths = sorted(acceptance_test.iterdir())
    for path in paths:
        open_store(folder_uri).put_file(path, path.name)
    files = (*candidate.files, *map(_entry, paths))
    return candidate.model_copy(update={"files": files, "acceptance_test": names[0]})


def _as_staged(published: Manifest, candidate: Manifest) -> Manifest:
    """A published manifest without the parts that are added after staging: scores and acceptance test."""
    files = published.files[: len(candidate.files)] if published.acceptance_test else published.files
    return published.model_copy(update={"evaluation": candidate.evaluation, "acceptance_test": "", "files": files})


def read_manifest(uri: str) -> Manifest:
    """Read the manifest at a URI, or in the folder at a URI.

    Raises:
        StorageError: the manifest does not exist or is malformed.
    """
    return parse_manifest(manifest_bytes(uri), uri)


def manifest_bytes(uri: str) -> bytes:
    """Read the manifest at a URI, or in the folder at a URI, without a check of its content.

    Raises:
        StorageError: it does not exist, or has more than 16 MiB.
    """
    folder, name = _split(uri)
    return open_store(folder).read_bytes(name, MAX_BYTES)


def signature_bytes(uri: str) -> bytes:
    """Read the signature of the manifest at a URI, or in the folder at a URI, without a check.

    Raises:
        StorageError: there is none.
    """
    store = open_store(_split(uri)[0])
    if not store.exists(SIGNATURE):
        raise StorageError(
            f"{uri} is not signed: {store.uri(SIGNATURE)} does not exist; publish it with a gate that signs"
        )
    return store.read_bytes(SIGNATURE, MAX_BYTES)


def sign_manifest(uri: str, content: bytes, private_key: str, name: str) -> None:
    """Store the signature of a manifest next to it.

    Args:
        uri: the manifest's URI.
        content: the manifest's bytes, as they were read there.
        private_key: see `signature`.
        name: where the key was read, for the error.

    Raises:
        InputError: the key cannot be used.
        StorageError: the store failed.
    """
    open_store(_split(uri)[0]).put_bytes(sign(content, private_key, name), SIGNATURE, overwrite=True)


def check_signed(uri: str, sha256: str, public_key: str) -> None:
    """Check the signature of the manifest at a URI, or in the folder at a URI.

    Args:
        uri: the location.
        sha256: as for `parse_manifest`.
        public_key: see `signature`.

    Raises:
        InputError: the key cannot be used.
        StorageError: the manifest is another one, is not signed, or not with this key.
    """
    content = manifest_bytes(uri)
    parse_manifest(content, uri, sha256)
    verify(content, signature_bytes(uri), public_key, uri)


def parse_manifest(content: bytes, where: str, sha256: str = "") -> Manifest:
    """Parse a manifest. Its sha256 covers everything that is served, because it lists the files with theirs.

    Args:
        content: the manifest.
        where: its location, for errors.
        sha256: that of the manifest that passed the gate; empty accepts any.

    Raises:
        StorageError: it is malformed, or does not have the sha256.
    """
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256:
        raise StorageError(
            f"{where} is not the manifest that passed the gate: sha256 {found} instead of {sha256}; find out who "
            "changed it, and publish the model again"
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise StorageError(f"{where} is not a model's manifest: {_first(error)}") from error


def manifest_of(gguf: Path) -> Manifest | None:
    """The manifest that describes a GGUF file, from its folder; None if there is none.

    It is NAME.manifest.json next to NAME.gguf, as `chatmetrics convert` writes it, or the folder's manifest.json or
    candidate.json.

    Raises:
        StorageError: it is malformed.
    """
    for name in (f"{gguf.stem}.{MANIFEST}", MANIFEST, CANDIDATE):
        if (gguf.parent / name).is_file():
            manifest = read_manifest(str(gguf.parent / name))
            if any(file.name == gguf.name for file in manifest.files):
                return manifest
    return None


def describe(name: str, gguf: Path, description: Mapping[str, Any]) -> None:
    """Write the manifest of a GGUF file next to it, so that it can be served and evaluated without a store.

    Args:
        name: name of the model.
        gguf: the file.
        description: the other fields of Manifest.

    Raises:
        InputError: the name or a field of the description is not valid.
        StorageError: the disk is full or not writable.
    """
    with atomic_file(gguf.with_name(f"{gguf.stem}.{MANIFEST}")) as file:
        file.write(_manifest(name, "", [gguf], description).model_dump_json(indent=2).encode())


def weights_of(manifest: Manifest, where: str) -> ModelFile:
    """The GGUF file of a model.

    Args:
        manifest: the model.
        where: the manifest's location, for the error.

    Raises:
        InputError: the model has no GGUF file, or several.
    """
    weights = [file for file in manifest.files if file.name.endswith(".gguf")]
    if len(weights) != 1:
        raise InputError(f"{where} lists {len(weights)} GGUF files, expected one; publish it with the convert step")
    return weights[0]


def fetch(manifest_uri: str, folder: Path, sha256: str = "") -> Manifest:
    """Fetch a published model and its manifest to `folder` and verify each file. Files that are already there are kept.

    Args:
        manifest_uri: location of the manifest, or of its folder.
        folder: the target folder.
        sha256: as for `parse_manifest`.

    Raises:
        StorageError: a file is missing or damaged, the manifest is another one, or the disk failed.
    """
    content = manifest_bytes(manifest_uri)
    manifest = parse_manifest(content, manifest_uri, sha256)
    store = open_store(_split(manifest_uri)[0])
    for file in manifest.files:
        store.get_file(file.name, folder / file.name, file.sha256, file.size)
    with atomic_file(folder / MANIFEST) as copy:
        copy.write(content)  # not rendered again, so that its sha256 stays
    return manifest


def fetch_file(manifest_uri: str, name: str, folder: Path) -> Path | None:
    """Fetch one file of a model to `folder` and verify it; None if the manifest does not list it.

    Raises:
        StorageError: the manifest or the file is missing or damaged, or the disk failed.
    """
    listed = next((file for file in read_manifest(manifest_uri).files if file.name == name), None)
    if listed is None:
        return None
    open_store(_split(manifest_uri)[0]).get_file(name, folder / name, listed.sha256, listed.size)
    return folder / name


def _put(manifest: Manifest, uri: str) -> None:
    folder, name = _split(uri)
    # If another writer was faster, the caller compares the contents.
    with suppress(AlreadyThereError):
        open_store(folder).put_bytes(manifest.model_dump_json(indent=2).encode(), name, overwrite=False)


def _manifest(name: str, version: str, files: Sequence[Path], description: Mapping[str, Any]) -> Manifest:
    entries = [_entry(path) for path in files]
    try:
        manifest = Manifest(
            **{**description, "name": name, "version": version or "0", "files": entries, "created": datetime.now(UTC)}
        )
    except ValidationError as error:
        raise InputError(f"description of model {name!r}: {_first(error)}") from error
    if version:
        return manifest
    # Keys are sorted, because a cached description may have them in another order. The acceptance test is left out: it
    # is drawn only later, and versions without one must keep their names.
    described = manifest.model_dump(mode="json", exclude={"created", "version", "acceptance_test"})
    content = json.dumps(described, sort_keys=True)
    return manifest.model_copy(update={"version": hashlib.sha256(content.encode()).hexdigest()[:12]})


def _entry(path: Path) -> ModelFile:
    return ModelFile(name=path.name, size=path.stat().st_size, sha256=sha256_of(path))


def _split(uri: str) -> tuple[str, str]:
    """The folder and the file name of a manifest's URI."""
    folder, _, name = uri.rpartition("/")
    return (folder, name) if name.endswith(".json") else (uri, MANIFEST)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
