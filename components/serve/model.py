"""The model to serve: a published model, fetched by its manifest, or a GGUF file."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, PromptTemplate
from chatmetrics.components.serve.settings import ServeSettings
from chatmetrics.components.storage.manifest import Manifest, fetch, manifest_of, read_manifest, weights_of

DEFAULT_CONTEXT_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A GGUF file on this machine, and its prompt template and parameters. `name` has Ollama's form `name:tag`.

    `manifest_sha256` is that of the manifest that passed the gate; empty if it is not known.
    """

    name: str
    gguf: Path
    sha256: str
    template: PromptTemplate
    context_length: int
    stop: tuple[str, ...] = ()
    manifest_sha256: str = ""


def find_model(reference: str, settings: ServeSettings) -> ServedModel:
    """Return a GGUF file as a model, with the manifest next to it, or fetch a published model and verify every file.

    Args:
        reference: Path of a GGUF file, or URI of a published model's manifest.json.
        settings: Cache folder and context length.

    Raises:
        InputError: The file does not exist, or the manifest lacks a field that serving needs.
        StorageError: A file cannot be fetched or differs from the manifest.
    """
    if reference.endswith(".json"):
        return _published(reference, settings)
    path = Path(reference).expanduser()
    if not path.is_file():
        raise InputError(f"{reference}: no such file; give a published model's manifest.json or a GGUF file")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    manifest, name = manifest_of(path), _name(path.stem)
    if manifest:
        return replace(served_model(manifest, manifest.name, path.parent, settings.context_length), name=name)
    console.warning(
        f"{path.name} has no manifest next to it, so its chats get the prompt template {DEEPSEEK3.name}: convert it "
        "with `chatmetrics convert`, which writes a manifest with the model's own template"
    )
    return ServedModel(name, path, sha256, DEEPSEEK3, settings.context_length or DEFAULT_CONTEXT_LENGTH)


def _published(uri: str, settings: ServeSettings) -> ServedModel:
    published = read_manifest(uri)
    folder = Path(settings.cache).expanduser() / "models" / published.name / published.version
    manifest = fetch(uri, folder)
    return served_model(manifest, manifest.name, folder, settings.context_length)


def served_model(manifest: Manifest, name: str, folder: Path, context_length: int = 0) -> ServedModel:
    """Describe a fetched model, which is served as `name:version`.

    Args:
        manifest: The model's manifest.
        name: Its name in requests.
        folder: Folder with its files.
        context_length: Maximum tokens of prompt and answer together; 0 is the published context length.

    Raises:
        InputError: The manifest lacks a field that serving needs.
    """
    weights = weights_of(manifest, name)
    return ServedModel(
        _name(name, manifest.version),
        folder / weights.name,
        weights.sha256,
        PromptTemplate.parse(manifest.prompt_template or DEEPSEEK3.text),
        context_length or manifest.context_length or DEFAULT_CONTEXT_LENGTH,
        manifest.stop,
    )


def _name(name: str, tag: str = "latest") -> str:
    """Make a name that Ollama accepts: ASCII letters, digits and `._-`."""
    return ":".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._") or "model" for part in (name, tag))
