"""GPU node pools: how a train pod is scheduled on one, how a recipe is adapted to it, and its price per hour."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from chatmetrics.components.errors import InputError
from chatmetrics.components.image import image
from chatmetrics.components.settings import Settings
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.kubernetes_values import LabelKey, LabelValue, Toleration
from chatmetrics.pipelines.recipe import Recipe, read_mapping
from chatmetrics.pipelines.validation_errors import did_you_mean, explain, first_key

SHIPPED = Path(__file__).with_name("gpu_pools.yaml")
DEFAULT = "A100"  # pool that packages are compiled for; each run may choose another
BF16_CAPABILITY = 8.0


class Pool(Settings):
    """One kind of GPU node, as described in gpu_pools.yaml."""

    model_config = ConfigDict(allow_inf_nan=False)

    label: LabelValue = Field("", description="Value of the node label `cluster.node_label`; empty: any node")
    gpu_memory_gib: float = Field(ge=0, description="Memory of one GPU in GiB; 0: a pool without GPUs")
    compute_capability: float = Field(
        0.0, ge=0, description="Compute capability of an NVIDIA GPU; 0: another vendor, or unknown"
    )
    peak_tflops: float = Field(
        0.0, ge=0, description="Dense peak of one GPU at the pool's precision; 0: hours are not estimated"
    )
    utilization: float = Field(
        0.4, gt=0, le=1, description="Share of the peak that training reaches (MFU), for estimating hours; runs log it"
    )
    memory_gb_per_second: float = Field(
        0.0, ge=0, description="Memory bandwidth of one GPU, for the hours of a base in 4 bits; 0: not counted"
    )
    price_per_hour: float = Field(0.0, ge=0, description="Price of one GPU per hour")
    image: str = Field("train", description="Folder in images/ of the train image for this pool")
    evaluate_image: str = Field(
        "",
        description="Image of evaluate with a llama.cpp built for the pool's GPUs, if `cluster.pools` puts evaluate "
        "here; empty: evaluate takes no GPU and computes on the CPUs of the pool's nodes",
    )
    resource: LabelKey = Field("nvidia.com/gpu", min_length=1, description="Kubernetes resource name of the GPU")
    tolerations: list[Toleration] = Field(
        [Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")],
        description="Tolerations of the pods for the taints of the pool's nodes",
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="Precision used for a recipe's half precision; fp32: all recipes train in fp32"
    )
    batch_size: int = Field(
        0, ge=0, description="Most examples per GPU and forward pass; 0: the recipe's `train.batch_size`"
    )
    gradient_checkpointing: bool = Field(
        False, description="Whether all recipes train with gradient checkpointing on this pool"
    )

    @model_validator(mode="after")
    def _computes_in_its_precision(self) -> Self:
        """Refuse bf16 on a GPU that does not support it."""
        if self.precision == "bf16" and 0 < self.compute_capability < BF16_CAPABILITY:
            raise ValueError(
                f"a GPU of compute_capability {self.compute_capability} does not support bf16; set precision: fp16"
            )
        return self

    def fitted(self, train: TrainSettings) -> TrainSettings:
        """Return the training settings for the pool's GPUs.

        The number of examples per optimizer step stays the same. The batch size is the largest divisor of it that is
        at most the recipe's and the pool's.
        """
        examples = train.batch_size * train.gradient_accumulation
        most = min(train.batch_size, self.batch_size or train.batch_size)
        batch_size = max(size for size in range(1, most + 1) if examples % size == 0)
        precision = train.precision if train.precision == "fp32" else self.precision
        return train.model_copy(
            update={
                "batch_size": batch_size,
                "gradient_accumulation": examples // batch_size,
                "precision": precision,
                "gradient_checkpointing": train.gradient_checkpointing or self.gradient_checkpointing,
            }
        )

    def runs_on_gpu(self, step: str) -> bool:
        """Whether a step other than train takes a GPU of the pool."""
        return step == "evaluate" and bool(self.evaluate_image) and self.gpu_memory_gib > 0

    def arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the DAG's parameters for a run of the recipe on this pool."""
        gpus = recipe.train.processes if self.gpu_memory_gib else 0
        return {
            "train_settings": self.fitted(recipe.train).model_dump(mode="json"),
            "node_selector": {recipe.cluster.node_label: self.label} if self.label else {},
            "tolerations": [toleration.as_written() for toleration in self.tolerations],
            "gpu_resource": self.resource,
            "gpus": str(gpus),
            "train_image": image(self.image),
            "price_per_hour": self.price_per_hour * gpus,
        }


def load_pools(file: Path | None = None) -> dict[str, Pool]:
    """Read the shipped pools and those of a file, which take precedence.

    Raises:
        InputError: the file cannot be read, or a pool is invalid; names the file and the key.
    """
    described = {path: read_mapping(path) for path in (SHIPPED, file) if path}
    pools: dict[str, Pool] = {}
    for path, entries in described.items():
        for name, values in entries.items():
            try:
                pools[str(name)] = Pool.model_validate(values)
            except ValidationError as error:
                key = f"{name}.{first_key(error)}".rstrip(".")
                raise InputError(f"{path}: {key}: {explain(error, Pool)}") from error
    return pools


def find_pool(name: str, pools: Mapping[str, Pool], where: str = "--gpu-pool") -> Pool:
    """Return the pool with a name.

    Args:
        name: the name.
        pools: the known pools.
        where: the option or setting that has the name, for the error.

    Raises:
        InputError: there is no such pool; names the closest.
    """
    if name in pools:
        return pools[name]
    raise InputError(f"{where} {name}: no such pool; {did_you_mean(name.upper(), pools)}")


def step_pools(recipe: Recipe, pools: Mapping[str, Pool]) -> dict[str, Pool]:
    """Return the pool of each step in a recipe's `cluster.pools`.

    Raises:
        InputError: there is no pool of that name.
    """
    return {step: find_pool(name, pools, f"cluster.pools.{step}") for step, name in recipe.cluster.pools.items()}
