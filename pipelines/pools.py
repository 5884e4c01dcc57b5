"""GPU node pools: what makes a train pod land on one of them, and what an hour of it costs."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from chatmetrics.components.errors import InputError
from chatmetrics.components.image import image
from chatmetrics.components.settings import Settings
from chatmetrics.pipelines.recipe import Recipe, read_mapping

SHIPPED = Path(__file__).with_name("gpu_pools.yaml")
DEFAULT = "A100"  # of a package, whose runs say which pool they are for
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}  # of a weight


class Pool(Settings):
    """One kind of node; see gpu_pools.yaml."""

    label: str = Field("", description="value of the node label; empty is any node")
    gpu_memory_gib: float = Field(ge=0, description="memory of one GPU; 0 is a pool without GPUs")
    price_an_hour: float = Field(0.0, ge=0, description="of one GPU")
    image: str = Field("train", description="folder in images/ of the train image that runs there")
    resource: str = Field("nvidia.com/gpu", description="what Kubernetes calls such a GPU")
    tolerations: list[dict[str, Any]] = Field(
        [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        description="for the taints of its nodes",
    )

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the DAG's parameters for a run of the recipe here."""
        gpus = recipe.train.processes if self.gpu_memory_gib else 0
        return {
            "node_selector": {recipe.cluster.node_label: self.label} if self.label else {},
            "tolerations": self.tolerations,
            "gpu_resource": self.resource,
            "gpus": str(gpus),
            "train_image": image(self.image),
            "price_an_hour": self.price_an_hour * gpus,
        }

    def check_fits(self, name: str, recipe: Recipe, billions: float) -> None:
        """Refuse what cannot work: weights that are larger than the GPU's memory.

        Raises:
            InputError: says by how much.
        """
        weights = billions * BYTES[recipe.train.precision] * 1e9 / 2**30
        if self.gpu_memory_gib and weights > self.gpu_memory_gib:
            raise InputError(
                f"{recipe.name}: the base's weights take {weights:.0f} GiB in {recipe.train.precision}, a GPU of the "
                f"pool {name} has {self.gpu_memory_gib:.0f}; choose a larger pool or a smaller train.precision"
            )


def load_pools(file: Path | None = None) -> dict[str, Pool]:
    """Read the pools of a file, added to those that come with ChatMetrics.

    Raises:
        InputError: the file cannot be read or a pool is not described rightly; names it.
    """
    described = {path: read_mapping(path) for path in (SHIPPED, file) if path}
    pools: dict[str, Pool] = {}
    for path, entries in described.items():
        for name, values in entries.items():
            try:
                pools[str(name)] = Pool.model_validate(values)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise InputError(f"{path}: {name}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return pools


def find_pool(name: str, pools: dict[str, Pool]) -> Pool:
    """Return the pool of a name.

    Raises:
        InputError: there is none; names the nearest.
    """
    if name in pools:
        return pools[name]
    near = difflib.get_close_matches(name.upper(), list(pools), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(pools)}"
    raise InputError(f"--gpu-pool {name}: no such pool; {hint}")
