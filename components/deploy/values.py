"""The chart's values: the recipe's values with the published model and the memory that it needs."""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from chatmetrics.components.errors import InputError
from chatmetrics.components.inference.ollama_memory import memory_mib
from chatmetrics.components.storage.manifest import (
    CANDIDATE,
    MANIFEST,
    Manifest,
    check_signed,
    manifest_bytes,
    parse_manifest,
    weights_of,
)
from chatmetrics.components.storage.store import open_store

CHART = "CHATMETRICS_CHART"

Values = dict[str, Any]


def chart_path() -> Path:
    """Return the chart's folder: CHATMETRICS_CHART, else `helm/chatmetrics-ollama` in the same folder as `components`.

    Raises:
        InputError: the folder has no chart.
    """
    default = Path(__file__).parents[2] / "helm" / "chatmetrics-ollama"
    path = Path(os.environ.get(CHART) or default)
    if not (path / "Chart.yaml").is_file():
        raise InputError(f"{path} is not a Helm chart: set {CHART} to the folder helm/chatmetrics-ollama of a checkout")
    return path


def default_values(chart: Path) -> Values:
    """Return the values that the chart in this folder has where nothing else is given."""
    return dict(yaml.safe_load((chart / "values.yaml").read_text("utf-8")) or {})


def image_reference(chosen: Mapping[str, Any]) -> str:
    """Return the reference that the chart makes of a value such as `image`: by digest if there is one."""
    if chosen.get("digest"):
        return f"{chosen['repository']}@{chosen['digest']}"
    return f"{chosen['repository']}:{chosen['tag']}"


def image_of(section: str, values: Mapping[str, Any]) -> str:
    """Return the reference of the image in a section of the values, such as `ollama`, with the chart's defaults."""
    defaults = default_values(chart_path())[section]["image"]
    return image_reference({**defaults, **((values.get(section) or {}).get("image") or {})})


def published(uri: str, sha256: str = "") -> tuple[Manifest, str]:
    """Read the manifest of a published model that pods can read as well, and compute its sha256.

    Args:
        uri: URI of the model's manifest.json or of its folder.
        sha256: that of the manifest that passed the gate; empty accepts any.

    Raises:
        InputError: the model is a candidate, or the URI is a path on this machine.
        StorageError: the model does not exist, or its manifest is damaged or another one.
    """
    if "://" not in uri:
        raise InputError(f"{uri}: is a path on this machine, which pods cannot read; give an s3:// URI")
    folder, _, name = uri.rpartition("/") if uri.endswith(".json") else (uri.rstrip("/"), "", MANIFEST)
    store = open_store(folder)
    if name == CANDIDATE or (not store.exists(MANIFEST) and store.exists(CANDIDATE)):
        raise InputError(f"{folder}: is not published; it is a candidate that has not passed the gate; see its report")
    content = manifest_bytes(uri)
    return parse_manifest(content, uri, sha256), hashlib.sha256(content).hexdigest()


def chart_values(given: Mapping[str, Any], name: str, uri: str, sha256: str = "") -> Values:
    """Return the given values with the model in the list `models`, where it replaces its former version.

    Args:
        given: the values of the recipe or of the current release.
        name: name of the model that clients use.
        uri: URI of the published model's manifest.
        sha256: that of the manifest; pods serve no other. Empty permits any.

    Raises:
        InputError: `models` is not a list of models, or `manifestKey` is not a key; also as `published`.
        StorageError: as `published`, or the manifest is not signed with the key of `manifestKey`.
    """
    values: Values = copy.deepcopy(dict(given))
    models = values.get("models") or []
    if not isinstance(models, list) or not all(isinstance(model, dict) and model.get("name") for model in models):
        raise InputError("deploy.values.models: write a list of {name: ..., uri: ...}")
    location = {"uri": uri, "sha256": sha256} if sha256 else {"uri": uri}
    if any(model["name"] == name for model in models):
        models = [
            {key: model[key] for key in model if key != "sha256"} | location if model["name"] == name else model
            for model in models
        ]
    else:
        models = [{"name": name, **location}, *models]
    values["models"] = models
    if key := values.get("manifestKey"):
        check_signed(uri, sha256, str(key))
    _fit_memory(values)
    return values


def content_hash(chart: Path, values: Mapping[str, Any]) -> str:
    """Return a hash of the chart's files and the values. If it is that of the current release, no rollout is needed."""
    digest = hashlib.sha256()
    for path in sorted(path for path in chart.rglob("*") if path.is_file() and path.suffix != ".md"):
        digest.update(path.relative_to(chart).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def merged(base: Values, overrides: Values) -> Values:
    """Return the values of `base` with those of `overrides`, which replace all but objects."""
    result = dict(base)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def _fit_memory(values: Values) -> None:
    """Set Ollama's memory request and limit to what the models need, unless the values set either."""
    ollama = values.setdefault("ollama", {})
    resources = ollama.setdefault("resources", {})
    given = (resources.get(kind) or {} for kind in ("requests", "limits"))
    if any("memory" in quantities for quantities in given):
        return
    sizes = [
        weights_of(published(model["uri"], model.get("sha256", ""))[0], model["uri"]).size for model in values["models"]
    ]
    memory = f"{memory_mib(sizes, ollama.get('concurrency', 1))}Mi"
    for kind in ("requests", "limits"):
        resources[kind] = {**(resources.get(kind) or {}), "memory": memory}
