"""The CPU, memory and disk requests of the steps' pods, estimated from the size of the base model."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from chatmetrics.components.base_model.references import as_folder
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.pools import Pool
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.validation_errors import did_you_mean

SMALL = 0.5  # billions of parameters; a smaller base model needs at most one core per step
SIZE_IN_NAME = re.compile(r"(?:^|[-_])(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)
DISK = "ephemeral-storage"  # Kubernetes' name of this resource

# A name rounds: what is called 7B has 7.6 billion parameters.
BASE_BYTES = 2.2
GGUF_BYTES = {
    "F16": 2.2,
    "Q8_0": 1.2,
    "Q6_K": 0.95,
    "Q5_K_M": 0.8,
    "Q4_K_M": 0.7,
    "Q5_0": 0.8,
    "Q4_1": 0.75,
    "Q4_0": 0.7,
}
QUESTIONS = 10_000
TOKEN_BYTES = 4  # mean length of a token in English; a Chinese character takes two bytes in memory
SPARE_GIGABYTES = 4.0  # logs, the input artifacts, a step's own files
DATABASE_GIGABYTES = 32.0  # of the dataset; those of BIRD's training questions are the largest


@dataclass(frozen=True)
class Requests:
    """Requests of one step's pod, as Kubernetes quantities; `disk` is empty for a step that needs little."""

    cpu: str
    memory: str
    disk: str = ""


def billions_of_parameters(recipe: Recipe) -> float:
    """Return the size of the base model: the recipe's `cluster.base_parameters`, else from its files, else its name.

    Raises:
        InputError: none of them gives a size, or it is a GGUF file that cannot be used.
    """
    if recipe.cluster.base_parameters:
        return recipe.cluster.base_parameters
    folder = Path(as_folder(recipe.base_model))
    if size := sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0:
        return size / 2 / 1e9  # two bytes per weight
    if found := SIZE_IN_NAME.search(recipe.base_model.rpartition("/")[2]):
        return float(found[1])
    raise InputError(
        f"{recipe.base_model}: its name does not contain its size; set cluster.base_parameters, in billions"
    )


def requests_of(recipe: Recipe) -> dict[str, Requests]:
    """Return the requests of each step: the recipe's `cluster.requests`, else an estimate.

    Memory in GB for a base model of P billion parameters: distill holds the reasoning of all samples; each process of
    train loads two bytes per weight (four when it trains on a CPU), from files that the node caches once; merge
    computes with four and holds a second copy for the comparison; convert and evaluate hold a GGUF.

    Disk: train fetches the base and keeps three checkpoints; merge fetches the base and writes the merged model;
    convert fetches a model and writes an unquantized and a quantized GGUF; evaluate fetches two GGUFs and databases.

    Raises:
        InputError: the size of the base model is unknown, or `cluster.requests` has an unknown step.
    """
    p, gpus = billions_of_parameters(recipe), recipe.train.processes
    cores = "500m" if p < SMALL else "4"
    base, gguf = BASE_BYTES * p, GGUF_BYTES[recipe.convert.quantization] * p
    databases = SPARE_GIGABYTES if p < SMALL else DATABASE_GIGABYTES
    estimates = {
        "preprocess": Requests(cores, "2Gi"),
        "distill": Requests(cores, _gibibytes(2 + _samples_gigabytes(recipe.distill))),
        "train": Requests(
            "1" if p < SMALL else str(4 + 4 * gpus), _gibibytes(2 * p + gpus * (2 * p + 2)), _disk(1.5 * base)
        ),
        "merge": Requests(cores, _gibibytes(8 * p + 2), _disk(2 * base)),
        "convert": Requests(cores, _gibibytes(2 * p + 2), _disk(2 * base + gguf)),
        "evaluate": Requests(cores if p < SMALL else "8", _gibibytes(2 * p + 2), _disk(2 * gguf + databases)),
        "gate": Requests("100m", "512Mi"),
        "deploy": Requests("100m", "512Mi"),
        "outcome": Requests("100m", "512Mi"),
    }
    for step, chosen in recipe.cluster.requests.items():
        if step not in estimates:
            raise InputError(f"cluster.requests.{step}: no such step; {did_you_mean(step, estimates)}")
        estimates[step] = replace(estimates[step], **chosen.model_dump(exclude_defaults=True))
    return estimates


def _samples_gigabytes(settings: DistillSettings) -> float:
    """Size of a teacher's answers: half of the longest answer, on average, for as many questions as Spider has."""
    if not settings.is_remote:
        return 0.0
    answers = QUESTIONS * settings.samples * settings.rounds
    return answers * settings.max_tokens * TOKEN_BYTES / 2 / 1e9


def _gibibytes(gigabytes: float) -> str:
    return f"{math.ceil(gigabytes * 1e9 / 2**30)}Gi"


def _disk(gigabytes: float) -> str:
    return _gibibytes(gigabytes + SPARE_GIGABYTES)


def requests_disk(step: str, recipe: Recipe, placed: Mapping[str, Pool]) -> bool:
    """Whether a step's pod requests its disk of the node, so that only a node with room is chosen.

    Not train, nor a step on a GPU: KFP has one field for both. Not in a queue either, unless the recipe asks for it,
    since Kueue never admits a pod that requests what its ClusterQueue does not cover.

    Args:
        step: name of the step.
        recipe: the recipe.
        placed: the pools of the steps in `cluster.pools`.
    """
    chosen = recipe.cluster.requests.get(step)
    wanted = bool(chosen and chosen.disk) or (bool(requests_of(recipe)[step].disk) and not recipe.cluster.queue)
    on_gpu = step == "train" or (step in placed and placed[step].runs_on_gpu(step))
    return wanted and not on_gpu and not recipe.cluster.scratch_class
