"""The CPU and memory requests of the steps' pods, estimated from the size of the base model."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.validation_errors import did_you_mean

SMALL = 0.5  # billions of parameters; a smaller base model needs at most one core per step
SIZE_IN_NAME = re.compile(r"(?:^|[-_])(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Requests:
    """Requests of one step's pod, as Kubernetes quantities."""

    cpu: str
    memory: str


def billions_of_parameters(recipe: Recipe) -> float:
    """Return the size of the base model: the recipe's `cluster.base_parameters`, else from its files, else its name.

    Raises:
        InputError: none of them gives a size.
    """
    if recipe.cluster.base_parameters:
        return recipe.cluster.base_parameters
    folder = Path(recipe.base_model)
    if size := sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0:
        return size / 2 / 1e9  # two bytes per weight
    if found := SIZE_IN_NAME.search(recipe.base_model.rpartition("/")[2]):
        return float(found[1])
    raise InputError(
        f"{recipe.base_model}: its name does not contain its size; set cluster.base_parameters, in billions"
    )


def requests_of(recipe: Recipe) -> dict[str, Requests]:
    """Return the requests of each step: the recipe's `cluster.requests`, else an estimate.

    Memory in GB for a base model of P billion parameters: train loads two bytes per weight (four when it trains on a
    CPU); merge computes with four and holds a second copy for the comparison; convert and evaluate hold a GGUF.

    Raises:
        InputError: the size of the base model is unknown, or `cluster.requests` has an unknown step.
    """
    p = billions_of_parameters(recipe)
    cores = "500m" if p < SMALL else "4"
    estimates = {
        "preprocess": Requests(cores, "2Gi"),
        "distill": Requests(cores, "2Gi"),
        "train": Requests("1" if p < SMALL else "8", _gibibytes(4 * p + 2)),
        "merge": Requests(cores, _gibibytes(8 * p + 2)),
        "convert": Requests(cores, _gibibytes(2 * p + 2)),
        "evaluate": Requests(cores if p < SMALL else "8", _gibibytes(2 * p + 2)),
        "gate": Requests("100m", "512Mi"),
        "deploy": Requests("100m", "512Mi"),
        "outcome": Requests("100m", "512Mi"),
    }
    for step, chosen in recipe.cluster.requests.items():
        if step not in estimates:
            raise InputError(f"cluster.requests.{step}: no such step; {did_you_mean(step, estimates)}")
        estimates[step] = replace(estimates[step], **chosen.model_dump(exclude_defaults=True))
    return estimates


def _gibibytes(gigabytes: float) -> str:
    return f"{math.ceil(gigabytes * 1e9 / 2**30)}Gi"
