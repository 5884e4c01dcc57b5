"""What the chart is told: the model by its manifest, and the memory that it needs."""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatmetrics.components.errors import InputError
from chatmetrics.components.inference.ollama_memory import memory_mib
from chatmetrics.components.storage.manifest import CANDIDATE, MANIFEST, Manifest, read_manifest, weights_of
from chatmetrics.components.storage.store import open_store

CHART = "CHATMETRICS_CHART"

Values = dict[str, Any]


def chart_path() -> Path:
    """The folder of the chart: what CHATMETRICS_CHART names, else `helm/chatmetrics-ollama` beside `components`.

    Raises:
        InputError: there is none.
    """
    beside = Path(__file__).parents[2] / "helm" / "chatmetrics-ollama"
    path = Path(os.environ.get(CHART) or beside)
    if not (path / "Chart.yaml").is_file():
        raise InputError(f"{path} is no Helm chart: set {CHART} to the folder chatmetrics-ollama of a checkout")
    return path


def published(uri: str) -> Manifest:
    """The manifest of a model that a gate has let through, where pods can read it too.

    Raises:
        InputError: it is a candidate, or a path of this machine.
        StorageError: there is no such model, or its manifest is damaged.
    """
    if "://" not in uri:
        raise InputError(f"{uri}: is a path of this machine, which no pod can read; give an s3:// URI")
    folder, _, name = uri.rpartition("/") if uri.endswith(".json") else (uri.rstrip("/"), "", MANIFEST)
    store = open_store(folder)
    if name == CANDIDATE or (not store.exists(MANIFEST) and store.exists(CANDIDATE)):
        raise InputError(f"{folder}: is not published, it is a candidate that no gate has let through; see its report")
    return read_manifest(uri)


def chart_values(given: Mapping[str, Any], name: str, uri: str) -> Values:
    """The chart's values: the given ones with the model among them, which takes the place of its former version.

    Args:
        given: the recipe's or the release's.
        name: that clients say.
        uri: of the published model's manifest.

    Raises:
        InputError: `models` is no list of models; also as `published`.
        StorageError: as `published`.
    """
    values: Values = copy.deepcopy(dict(given))
    models = values.get("models") or []
    if not isinstance(models, list) or not all(isinstance(model, dict) and model.get("name") for model in models):
        raise InputError("deploy.values.models: write a list of {name: ..., uri: ...}")
    if any(model["name"] == name for model in models):
        models = [model | {"uri": uri} if model["name"] == name else model for model in models]
    else:
        models = [{"name": name, "uri": uri}, *models]
    values["models"] = models
    _fit_memory(values)
    return values


def content_hash(chart: Path, values: Mapping[str, Any]) -> str:
    """A hash of all that a release is made of: the same again is no rollout."""
    digest = hashlib.sha256()
    for path in sorted(path for path in chart.rglob("*") if path.is_file() and path.suffix != ".md"):
        digest.update(path.relative_to(chart).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _fit_memory(values: Values) -> None:
    """Ask for as much memory as the models need, where the values do not say it."""
    ollama = values.setdefault("ollama", {})
    resources = ollama.setdefault("resources", {})
    said = (resources.get(kind) or {} for kind in ("requests", "limits"))
    if any("memory" in kind for kind in said):
        return
    sizes = [weights_of(published(model["uri"]), model["uri"]).size for model in values["models"]]
    memory = f"{memory_mib(sizes, ollama.get('concurrency', 1))}Mi"
    for kind in ("requests", "limits"):
        resources[kind] = {**(resources.get(kind) or {}), "memory": memory}
