"""A model in the store: a candidate once its files are there, published once its manifest is."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo, field_validator

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.files import AlreadyThereError, atomic_file, sha256_of
from chatmetrics.components.storage.store import open_store

CANDIDATE = "candidate.json"
MANIFEST = "manifest.json"
ACCEPTANCE_TEST = "acceptance_test-*.json"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class ModelFile(BaseModel):
    """One file of a published model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Name beside the manifest", pattern=r"^[\w][\w.-]*$")
    size: int = Field(description="Bytes", ge=0)
    sha256: str = Field(description="Hexadecimal", pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a published model consists of, how to serve it and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Name of the model")
    version: str = Field(description="Version below the name")
    created: datetime = Field(description="When it was published, UTC")
    files: tuple[ModelFile, ...] = Field(description="The files beside the manifest", min_length=1)
    quantization: str = Field(default="", description="llama.cpp's name of the mix, for example Q4_K_M")
    fallbacks: dict[str, str] = Field(default={}, description="Tensors that do not fit the mix, with the type they got")
    prompt_template: str = Field(default="", description="The prompt without BOS, with its {placeholders}")
    schema_form: str = Field(default="", description="How prompts show the schema: none, ddl, m-schema; empty: unknown")
    sample_values: int = Field(default=0, description="Values of each column shown with the schema", ge=0)
    cutoff_length: int = Field(default=0, description="Most tokens of prompt and answer in training", ge=0)
    context_length: int = Field(default=0, description="Tokens to serve it with; 0 leaves it to the server", ge=0)
    stop: tuple[str, ...] = Field(default=(), description="Tokens that end an answer")
    provenance: dict[str, str] = Field(default={}, description="Hashes: dataset, base, adapter and what else made it")
    evaluation: dict[str, JsonValue] | None = Field(default=None, description="Summary of the scores, when known")
    acceptance_test: str = Field(default="", description="Which of the files is its acceptance test; empty: none is")

    @field_validator("acceptance_test")
    @classmethod
    def _is_listed(cls, name: str, info: ValidationInfo) -> str:
        if name and name not in {file.name for file in info.data.get("files", ())}:
            raise ValueError(f"{name!r} is not one of the files")
        return name

    def same_content(self, other: "Manifest") -> bool:
        """Whether two manifests differ in nothing but their date."""
        return self.model_copy(update={"created": other.created}) == other


def stage(models_uri: str, name: str, version: str, files: Sequence[Path], description: Mapping[str, Any]) -> str:
    """Store files and then candidate.json under models_uri/name/version/; staging the same again changes nothing.

    A candidate can be fetched and evaluated. It is not published: nothing that serves models sees it.

    Args:
        models_uri: folder, file:// or s3://bucket/prefix.
        name: of the model; letters, digits, `.`, `_` and `-`.
        version: likewise; "" takes the first 12 hexadecimal digits of a hash of files and description.
        files: stored under their own names.
        description: the other fields of Manifest.

    Returns:
        The URI of candidate.json.

    Raises:
        InputError: a name or a field of the description is not valid.
        StorageError: the store refused; AlreadyThereError when the version holds something else.
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

    A version is never rewritten: when it is published already, its manifest stays as it is, scores and acceptance test
    included.

    Args:
        candidate_uri: what `stage` returned.
        evaluation: summary of its scores, for the manifest.
        acceptance_test: folder that evaluate wrote, whose files go along.

    Raises:
        InputError: the folder does not hold exactly one acceptance test.
        StorageError: the candidate is not there or the store refused.
    """
    candidate = read_manifest(candidate_uri)
    folder = _split(candidate_uri)[0]
    uri = f"{folder}/{MANIFEST}"
    if not open_store(folder).exists(MANIFEST):
        examined = _with_acceptance_test(candidate, folder, acceptance_test) if acceptance_test else candidate
        _put(examined.model_copy(update={"evaluation": evaluation, "created": datetime.now(UTC)}), uri)
    if not candidate.same_content(_as_staged(read_manifest(uri), candidate)):
        raise AlreadyThereError(f"{uri} is published with other content; choose another version")
    return uri


def _with_acceptance_test(candidate: Manifest, folder_uri: str, acceptance_test: Path) -> Manifest:
    """Store the files of an acceptance test beside the candidate's, and list them behind these."""
    names = [path.name for path in acceptance_test.glob(ACCEPTANCE_TEST)]
    if len(names) != 1:
        raise InputError(
            f"{acceptance_test} holds {len(names)} files {ACCEPTANCE_TEST}, expected one; evaluate the model anew"
        )
    paths = sorted(acceptance_test.iterdir())
    for path in paths:
        open_store(folder_uri).put_file(path, path.name)
    files = (*candidate.files, *map(_entry, paths))
    return candidate.model_copy(update={"files": files, "acceptance_test": names[0]})


def _as_staged(published: Manifest, candidate: Manifest) -> Manifest:
    """A published manifest without what is known only after staging: scores and acceptance test."""
    files = published.files[: len(candidate.files)] if published.acceptance_test else published.files
    return published.model_copy(update={"evaluation": candidate.evaluation, "acceptance_test": "", "files": files})


def read_manifest(uri: str) -> Manifest:
    """The manifest at a URI, or in the folder that the URI names.

    Raises:
        StorageError: it is not there or is not a manifest.
    """
    folder, name = _split(uri)
    try:
        return Manifest.model_validate_json(open_store(folder).read_bytes(name))
    except ValidationError as error:
        raise StorageError(f"{uri} is not a model's manifest: {_first(error)}") from error


def weights_of(manifest: Manifest, where: str) -> ModelFile:
    """The one GGUF file of a model.

    Raises:
        InputError: there is none or more than one; `where` says of what.
    """
    weights = [file for file in manifest.files if file.name.endswith(".gguf")]
    if len(weights) != 1:
        raise InputError(
            f"{where} has {len(weights) or 'no'} GGUF file, expected one; publish it with the convert step"
        )
    return weights[0]


def fetch(manifest_uri: str, folder: Path) -> Manifest:
    """Bring a published model and its manifest into `folder`, each file verified; what is there and right stays.

    Raises:
        StorageError: something is missing or damaged, or the disk refused.
    """
    manifest = read_manifest(manifest_uri)
    store = open_store(_split(manifest_uri)[0])
    for file in manifest.files:
        store.get_file(file.name, folder / file.name, file.sha256)
    with atomic_file(folder / MANIFEST) as copy:
        copy.write(manifest.model_dump_json(indent=2).encode())
    return manifest


def _put(manifest: Manifest, uri: str) -> None:
    folder, name = _split(uri)
    # When another writer is faster, what counts is whether it wrote the same, which the caller compares.
    with suppress(AlreadyThereError):
        open_store(folder).put_bytes(manifest.model_dump_json(indent=2).encode(), name, overwrite=False)


def _manifest(name: str, version: str, files: Sequence[Path], description: Mapping[str, Any]) -> Manifest:
    for what, value in (("name", name), ("version", version or "0")):
        if not NAME.fullmatch(value):
            raise InputError(f"model {what} {value!r}: use letters, digits, '.', '_' and '-', a letter or digit first")
    entries = [_entry(path) for path in files]
    try:
        manifest = Manifest(
            **{**description, "name": name, "version": version, "files": entries, "created": datetime.now(UTC)}
        )
    except ValidationError as error:
        raise InputError(f"description of model {name}: {_first(error)}") from error
    if version:
        return manifest
    # Sorted, because what comes out of a cache may have its keys in another order.
    # The acceptance test is drawn only later, and versions keep the names that they had before there was one.
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
