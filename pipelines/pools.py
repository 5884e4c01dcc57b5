"""GPU node pools: what makes a train pod land on one, how a recipe is fitted to it, what an hour of it costs."""

import difflib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from chatmetrics.components.errors import InputError
from chatmetrics.components.image import image
from chatmetrics.components.settings import Settings
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.recipe import Recipe, read_mapping

SHIPPED = Path(__file__).with_name("gpu_pools.yaml")
DEFAULT = "A100"  # of a package, whose runs say which pool they are for
BF16_CAPABILITY = 8.0


class Pool(Settings):
    """One kind of node; see gpu_pools.yaml."""

    label: str = Field("", description="value of the node label; empty is any node")
    gpu_memory_gib: float = Field(ge=0, description="memory of one GPU; 0 is a pool without GPUs")
    compute_capability: float = Field(0.0, ge=0, description="of an NVIDIA GPU; 0 is another maker's, or unknown")
    peak_tflops: float = Field(0.0, ge=0, description="of one GPU in its precision, dense; 0: hours are not estimated")
    utilization: float = Field(
        0.4, gt=0, le=1, description="share of the peak that training reaches, for hours; a run's log says its MFU"
    )
    price_per_hour: float = Field(0.0, ge=0, description="of one GPU")
    image: str = Field("train", description="folder in images/ of the train image that runs there")
    resource: str = Field("nvidia.com/gpu", description="what Kubernetes calls such a GPU")
    tolerations: list[dict[str, Any]] = Field(
        [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        description="for the taints of its nodes",
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="what a recipe's half precision is there; fp32: all recipes compute in it"
    )
    batch_size: int = Field(0, ge=0, description="most examples a GPU takes at once; 0: as many as the recipe says")
    gradient_checkpointing: bool = Field(
        False, description="whether recipes train with it there that do not ask for it"
    )

    @model_validator(mode="after")
    def _computes_in_its_precision(self) -> Self:
        """Refuse bf16 on a GPU that has none."""
        if self.precision == "bf16" and 0 < self.compute_capability < BF16_CAPABILITY:
            raise ValueError(f"a GPU of compute_capability {self.compute_capability} has no bf16; set precision: fp16")
        return self

    def fitted(self, train: TrainSettings) -> TrainSettings:
        """The settings for a GPU of the pool: as many examples an optimizer step, in batches that it can take."""
        examples = train.batch_size * train.gradient_accumulation
        most = min(train.batch_size, self.batch_size or train.batch_size)
        batch_size = max(size for size in range(1, most + 1) if examples % size == 0)
        half = train.precision != "fp32" or self.precision == "fp32"
        return train.model_copy(
            update={
                "batch_size": batch_size,
                "gradient_accumulation": examples // batch_size,
                "precision": self.precision if half else train.precision,
                "gradient_checkpointing": train.gradient_checkpointing or self.gradient_checkpointing,
            }
        )

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the DAG's parameters for a run of the recipe here."""
        gpus = recipe.train.processes if self.gpu_memory_gib else 0
        return {
            "train_settings": self.fitted(recipe.train).model_dump(mode="json"),
            "node_selector": {recipe.cluster.node_label: self.label} if self.label else {},
            "tolerations": self.tolerations,
            "gpu_resource": self.resource,
            "gpus": str(gpus),
            "train_image": image(self.image),
            "price_per_hour": self.price_per_hour * gpus,
        }


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
