"""The init container: the release's models, verified, where Ollama finds them."""

import sys
from itertools import combinations
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.inference.ollama_memory import MIB, memory_mib
from chatmetrics.components.serve.release import Release
from chatmetrics.components.serve.volume.model_store import ModelStore
from chatmetrics.components.storage.manifest import Manifest, weights_of


def fetch(release: Release, memory_limit: int = 0) -> None:
    """Fetch every model of a release into the volume and link its weights into Ollama's folder.

    Args:
        release: what is served.
        memory_limit: bytes that Ollama's container may use; 0 leaves the check out.

    Raises:
        InputError: the models do not fit into memory, or a manifest lacks what serving needs.
        StorageError: a model is not there, is damaged, or the disk refused.
    """
    store = ModelStore(release.store)
    store.prune(release.keep)
    manifests = [store.manifest(model.uri) for model in release.models]
    check_weights({model.name: manifest for model, manifest in zip(release.models, manifests, strict=True)})
    if memory_limit:
        check_memory(manifests, release.concurrency, memory_limit)
    blobs = release.ollama / "models" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for model, manifest in zip(release.models, manifests, strict=True):
        folder = store.fetch(model.uri)
        weights = weights_of(manifest, model.uri)
        _link(blobs / f"sha256-{weights.sha256}", folder / weights.name)
        size = f"{weights.size // MIB} MiB"
        print(f"{model.name}:{manifest.version} is here, {size}, sha256 {weights.sha256}", flush=True)


def check_weights(manifests: dict[str, Manifest]) -> None:
    """Refuse the same weights with two descriptions: Ollama would load them anew whenever the other is asked.

    Under two names with one description they are loaded once and are both.

    Args:
        manifests: of the models, by released name.

    Raises:
        InputError: names the two.
    """
    for (one, first), (other, second) in combinations(manifests.items(), 2):
        if weights_of(first, one).sha256 == weights_of(second, other).sha256 and _load_parameters(
            first
        ) != _load_parameters(second):
            raise InputError(
                f"{one} and {other} have the same weights but another prompt_template, context_length or stop, and "
                "Ollama keeps only one of them loaded; serve them in two releases"
            )


def check_memory(manifests: list[Manifest], concurrency: int, limit: int) -> None:
    """Compare what the models will take with what there is, before gigabytes are fetched for nothing.

    Raises:
        InputError: it is not enough; says how much is needed.
    """
    sizes = {
        weights.sha256: weights.size for weights in (weights_of(manifest, manifest.name) for manifest in manifests)
    }
    needed = memory_mib(list(sizes.values()), concurrency)
    if needed * MIB > limit:
        names = ", ".join(f"{manifest.name}:{manifest.version}" for manifest in manifests)
        raise InputError(
            f"{names}: about {needed} MiB of memory are needed with {concurrency} questions at once, Ollama has "
            f"{limit // MIB} MiB; raise ollama.resources.limits.memory, or choose a larger node or a smaller model"
        )


def _load_parameters(manifest: Manifest) -> tuple[object, ...]:
    return manifest.prompt_template, manifest.context_length, manifest.stop


def _link(link: Path, target: Path) -> None:
    """Put a link in place of what is there: Ollama takes a blob that it has for granted, and copies none."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    print(f"{link} -> {target}", file=sys.stderr, flush=True)
