"""The init container: fetch and verify a release's models and link them into Ollama's folder."""

from itertools import combinations
from pathlib import Path

from chatmetrics.components.console import info
from chatmetrics.components.errors import InputError
from chatmetrics.components.inference.ollama_memory import MIB, memory_mib
from chatmetrics.components.serve.release import Release
from chatmetrics.components.serve.volume.model_store import ModelStore
from chatmetrics.components.storage.manifest import Manifest, weights_of


def fetch(release: Release, memory_limit: int = 0) -> None:
    """Fetch every model of a release to the volume and link its weights into Ollama's folder.

    Args:
        release: Models and folders.
        memory_limit: Memory limit of Ollama's container in bytes; 0 skips the check.

    Raises:
        InputError: The models do not fit into memory, or a manifest lacks a field that serving needs.
        StorageError: A model does not exist, is damaged or not signed, or writing to the volume failed.
    """
    store = ModelStore(release.store, public_key=release.manifest_key)
    manifests = [store.manifest(model.uri, model.sha256) for model in release.models]
    store.prune(release.keep_versions, manifests)
    check_weights({model.name: manifest for model, manifest in zip(release.models, manifests, strict=True)})
    if memory_limit:
        check_memory(manifests, release.concurrency, memory_limit)
    blobs = release.ollama / "models" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for model, manifest in zip(release.models, manifests, strict=True):
        folder = store.fetch(model.uri, model.sha256)
        weights = weights_of(manifest, model.uri)
        _link(blobs / f"sha256-{weights.sha256}", folder / weights.name)
        size = f"{weights.size // MIB} MiB"
        print(f"{model.name}:{manifest.version} is on the volume, {size}, sha256 {weights.sha256}", flush=True)


def check_weights(manifests: dict[str, Manifest]) -> None:
    """Refuse two models with the same weights and different parameters.

    Ollama would load such weights again whenever a request names the other model. Two names for the same weights and
    parameters are loaded once.

    Args:
        manifests: Manifests of the models, by released name.

    Raises:
        InputError: Two models have the same weights and different parameters; the message names them.
    """
    for (one, first), (other, second) in combinations(manifests.items(), 2):
        same_weights = weights_of(first, one).sha256 == weights_of(second, other).sha256
        if same_weights and _load_parameters(first) != _load_parameters(second):
            raise InputError(
                f"{one} and {other} have the same weights but different prompt_template, context_length or stop, and "
                "Ollama keeps only one of them loaded; serve them in two releases"
            )


def check_memory(manifests: list[Manifest], concurrency: int, limit: int) -> None:
    """Compare the memory that the models need with the limit, before gigabytes are fetched in vain.

    Args:
        manifests: Manifests of the models.
        concurrency: Number of requests that Ollama answers at once.
        limit: Memory limit of Ollama's container in bytes.

    Raises:
        InputError: The limit is too low; the message names the required memory.
    """
    sizes = {
        weights.sha256: weights.size for weights in (weights_of(manifest, manifest.name) for manifest in manifests)
    }
    needed = memory_mib(list(sizes.values()), concurrency)
    if needed * MIB > limit:
        names = ", ".join(f"{manifest.name}:{manifest.version}" for manifest in manifests)
        raise InputError(
            f"{names}: about {needed} MiB of memory are needed with concurrency {concurrency}, but Ollama's limit is "
            f"{limit // MIB} MiB; raise ollama.resources.limits.memory, or choose a larger node or a smaller model"
        )


def _load_parameters(manifest: Manifest) -> tuple[object, ...]:
    return manifest.prompt_template, manifest.context_length, manifest.stop


def _link(link: Path, target: Path) -> None:
    """Create or replace a link. Ollama uses an existing blob without copying it."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    info(f"{link} -> {target}")
