"""The init container: the release's models, verified, where Ollama finds them."""

import sys
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.inference.memory import MIB, memory_mib
from chatmetrics.components.serve.model_store import ModelStore
from chatmetrics.components.serve.release import Release
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
    store.clear_away(release.keep)
    manifests = [store.manifest(model.uri) for model in release.models]
    if memory_limit:
        check_memory(manifests, release.parallel, memory_limit)
    blobs = release.ollama / "models" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for model, manifest in zip(release.models, manifests, strict=True):
        folder = store.fetch(model.uri)
        weights = weights_of(manifest, model.uri)
        _link(blobs / f"sha256-{weights.sha256}", folder / weights.name)
        size = f"{weights.size // MIB} MiB"
        print(f"{model.name}:{manifest.version} is here, {size}, sha256 {weights.sha256}", flush=True)


def check_memory(manifests: list[Manifest], parallel: int, limit: int) -> None:
    """Compare what the models will take with what there is, before gigabytes are fetched for nothing.

    Raises:
        InputError: it is not enough; says how much is needed.
    """
    needed = memory_mib([weights_of(manifest, manifest.name).size for manifest in manifests], parallel)
    if needed * MIB > limit:
        names = ", ".join(f"{manifest.name}:{manifest.version}" for manifest in manifests)
        raise InputError(
            f"{names}: about {needed} MiB of memory are needed with {parallel} questions at once, Ollama has "
            f"{limit // MIB} MiB; raise ollama.resources.limits.memory, or choose a larger node or a smaller model"
        )


def _link(link: Path, target: Path) -> None:
    """Put a link in place of what is there: Ollama takes a blob that it has for granted, and copies none."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    print(f"{link} -> {target}", file=sys.stderr, flush=True)
