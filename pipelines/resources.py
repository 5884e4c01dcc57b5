"""How much CPU and memory the steps ask a cluster for, from the size of the base model."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.recipe import Recipe

SMALL = 0.5  # billions of parameters; below it a step needs no more than a core
IN_NAME = re.compile(r"(?:^|[-_])(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Requests:
    """Of one step's pod, as Kubernetes writes them."""

    cpu: str
    memory: str


def billions_of_parameters(recipe: Recipe) -> float:
    """Return the size of the base: the recipe's word, else of its files, else what its name says.

    Raises:
        InputError: none of them tells.
    """
    if recipe.cluster.base_parameters:
        return recipe.cluster.base_parameters
    folder = Path(recipe.base_model)
    if size := sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0:
        return size / 2 / 1e9  # two bytes a weight
    if found := IN_NAME.search(recipe.base_model.rpartition("/")[2]):
        return float(found[1])
    raise InputError(
        f"{recipe.base_model}: its name does not say how large it is; set cluster.base_parameters, in billions"
    )


def requests_of(recipe: Recipe) -> dict[str, Requests]:
    """Return what each step asks for: the recipe's `cluster.requests`, else an estimate.

    Memory, in GB for a base of P billion parameters: train reads it in two bytes a weight (and trains in four on a
    CPU); merge computes in four and holds a second copy while it compares; convert and evaluate hold a GGUF.

    Raises:
        InputError: the size of the base is unknown, or the recipe names a step that there is not.
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
    for step, values in recipe.cluster.requests.items():
        if step not in estimates:
            raise InputError(f"cluster.requests: there is no step {step!r}; there are {', '.join(estimates)}")
        if unknown := set(values) - {"cpu", "memory"}:
            raise InputError(f"cluster.requests.{step}: {', '.join(sorted(unknown))} is neither cpu nor memory")
        estimates[step] = Requests(**{**vars(estimates[step]), **values})
    return estimates


def _gibibytes(gigabytes: float) -> str:
    return f"{math.ceil(gigabytes * 1e9 / 2**30)}Gi"
