"""Estimates a recipe's training on a GPU pool: memory by part, hours and cost."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.estimate.memory import BYTES, GIB, Memory, memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.estimate.workload import Workload
from chatmetrics.components.train.settings import FLEX_CAPABILITY, TrainSettings
from chatmetrics.pipelines.base_sizes import base_sizes
from chatmetrics.pipelines.pools import Pool, load_pools
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import requests_of

# The workload without a dataset is Spider's: its number of training questions, and the mean tokens of an example by
# form of schema, counted with the published base model. The first number is the part that the questions of a database
# share, the second the example's own. docs/training.md has the command that counts them.
SPIDER_QUESTIONS = 7_000
SPIDER_TOKENS = {"none": (22, 51), "ddl": (342, 54), "m-schema": (763, 59)}
SPIDER_ANSWER_TOKENS = 37


@dataclass(frozen=True)
class Estimate:
    """The training of one recipe on one pool.

    Attributes:
        pool: the pool.
        settings: the recipe's training settings, adapted to the pool.
        memory: bytes needed by part, on one GPU; on a pool without GPUs, in the pod.
        available: bytes available in the same place.
        workload: examples and tokens of an epoch.
        steps: optimizer steps of the whole training.
        hours: duration at the pool's utilization; 0 if its peak is unknown.
        cost: price of all GPUs for these hours.
    """

    pool: Pool
    settings: TrainSettings
    memory: Memory
    available: float
    workload: Workload
    steps: int
    hours: float
    cost: float

    @property
    def spare(self) -> float:
        """Available bytes that are not needed; negative if training does not fit."""
        return self.available - self.memory.total

    @property
    def waiting(self) -> float:
        """Share of the GPUs' time that they wait for the one with the largest share of each step, from 0 to 1."""
        return 1 - self.workload.computed_tokens / (self.workload.slowest_tokens * self.settings.processes)


def estimate(recipe: Recipe, pool: Pool, sizes: Sizes, counted: Workload | None = None) -> Estimate:
    """Estimate a recipe's training on a pool.

    Args:
        recipe: the recipe.
        pool: the pool.
        sizes: layer sizes of the base model.
        counted: workload of an epoch, counted from the dataset; None: a workload like Spider's is assumed.
    """
    settings = pool.fitted(recipe.train)
    epoch = counted or _spider_workload(recipe, settings)
    examples_per_step = settings.examples_per_step
    steps = settings.max_steps or math.ceil(math.ceil(epoch.examples / examples_per_step) * settings.epochs)
    epochs = steps * examples_per_step / epoch.examples
    hours = epochs * _seconds(pool, settings, sizes, epoch) / 3600
    return Estimate(
        pool=pool,
        settings=settings,
        memory=memory_of(
            sizes,
            settings,
            dense=not _uses_flex_attention(pool, settings),
            tokens=counted.largest_pack if counted else 0,
            shards=settings.processes if settings.fsdp else 1,
            gpu=bool(pool.gpu_memory_gib),
        ),
        available=_available(pool, recipe),
        workload=epoch,
        steps=steps,
        hours=hours,
        cost=hours * pool.price_per_hour * settings.processes,
    )


def check_fits(
    recipe: Recipe, pool_name: str, pools: Mapping[str, Pool], sizes: Sizes, counted: Workload | None = None
) -> None:
    """Refuse a run that would run out of memory.

    Raises:
        InputError: it does not fit; names the memory needed and available, and a change that makes it fit.
    """
    found = estimate(recipe, pools[pool_name], sizes, counted)
    if found.spare >= 0:
        return
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in found.memory.parts() if size >= GIB / 20)
    device = "a GPU of the pool" if pools[pool_name].gpu_memory_gib else "the train pod on the pool"
    raise InputError(
        f"{recipe.name}: training takes {found.memory.total / GIB:.1f} GiB ({parts}), {device} {pool_name} has "
        f"{found.available / GIB:.1f}; {_advice(recipe, pool_name, pools, sizes, counted)}"
    )


def check_pool(recipe: Recipe, pool_name: str, pool: Pool) -> None:
    """Refuse as `check_fits`, for a pool that may be the user's own; the advice considers the shipped pools too.

    Raises:
        InputError: it does not fit, or neither the base model's config.json nor its size is known.
    """
    check_fits(recipe, pool_name, load_pools() | {pool_name: pool}, base_sizes(recipe))


def _advice(recipe: Recipe, pool_name: str, pools: Mapping[str, Pool], sizes: Sizes, counted: Workload | None) -> str:
    """The smallest change of the settings that makes the recipe fit, and the smallest pool that it fits unchanged."""
    advice = []
    for change in _changes(recipe.train, bool(pools[pool_name].gpu_memory_gib)):
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update=change)})
        found = estimate(changed, pools[pool_name], sizes, counted)
        if found.spare >= 0:
            settings = " ".join(f"--set train.{key}={str(value).lower()}" for key, value in change.items())
            advice.append(f"{settings} makes it {found.memory.total / GIB:.1f} GiB")
            break
    larger = sorted((pool.gpu_memory_gib, name) for name, pool in pools.items() if pool.gpu_memory_gib)
    fitting = (name for _, name in larger if estimate(recipe, pools[name], sizes, counted).spare >= 0)
    smallest = next(fitting, None)
    if smallest:
        advice.append(f"it fits --gpu-pool {smallest} unchanged")
    return ", or ".join(advice) or "choose a smaller base model or train.cutoff_length, or add a larger pool by --pools"


def _changes(train: TrainSettings, has_gpu: bool) -> Iterable[dict[str, Any]]:
    """Changes of settings that save memory, the cheapest in speed and accuracy first."""
    checkpointing = {"gradient_checkpointing": True}
    smaller = {"batch_size": 1, "gradient_accumulation": train.batch_size * train.gradient_accumulation}
    yield checkpointing
    if train.batch_size > 1:
        yield smaller
        yield smaller | checkpointing
    if has_gpu:
        yield smaller | checkpointing | {"quantize_base": "nf4"}


def _seconds(pool: Pool, settings: TrainSettings, sizes: Sizes, epoch: Workload) -> float:
    """Duration of an epoch; 0 if the pool's peak is unknown.

    The processes of a step wait for the one that computes most. If the base's weights are stored in 4 bits, a GPU reads
    and writes them once more in each pass over a pack, to dequantize them.
    """
    if not pool.peak_tflops:
        return 0.0
    answers = round(epoch.answer_tokens * epoch.slowest_tokens / epoch.computed_tokens)
    checkpointing = settings.gradient_checkpointing
    flops = sizes.flops(epoch.slowest_tokens, answers, epoch.slowest_tokens / epoch.packs, checkpointing)
    seconds = flops / (pool.peak_tflops * 1e12 * pool.utilization)
    if settings.quantize_base == "nf4" and pool.memory_gb_per_second:
        passes = epoch.packs * (3 if checkpointing else 2)
        seconds += passes * sizes.dequantized_bytes(BYTES[settings.precision]) / (pool.memory_gb_per_second * 1e9)
    return seconds


def _spider_workload(recipe: Recipe, settings: TrainSettings) -> Workload:
    shared, own = SPIDER_TOKENS[recipe.preprocess.schema_form]
    steps = math.ceil(SPIDER_QUESTIONS / settings.examples_per_step)
    # A process takes its examples of a step from as few schemas as possible, and computes each of these schemas.
    examples = settings.examples_per_step / settings.processes
    schemas = math.ceil(examples / settings.questions_per_schema) if settings.packing else examples
    slowest = examples * own + schemas * shared
    return Workload(
        examples=SPIDER_QUESTIONS,
        tokens=SPIDER_QUESTIONS * (shared + own),
        computed_tokens=round(steps * settings.processes * slowest),
        slowest_tokens=round(steps * slowest),
        answer_tokens=SPIDER_QUESTIONS * SPIDER_ANSWER_TOKENS,
        packs=steps if settings.packing else steps * settings.gradient_accumulation,
        largest_pack=0,
    )


def _uses_flex_attention(pool: Pool, settings: TrainSettings) -> bool:
    return settings.packing and settings.attention != "sdpa" and pool.compute_capability >= FLEX_CAPABILITY


def _available(pool: Pool, recipe: Recipe) -> float:
    if pool.gpu_memory_gib:
        return pool.gpu_memory_gib * GIB
    return float(parse_quantity(requests_of(recipe)["train"].memory))
