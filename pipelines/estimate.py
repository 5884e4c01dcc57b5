"""What a recipe's training takes on a pool: memory by part, hours, money; before anything of it is spent."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.estimate.memory import GIB, Memory, memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.estimate.workload import Workload
from chatmetrics.components.train.settings import FLEX_CAPABILITY, TrainSettings
from chatmetrics.pipelines.base_sizes import base_sizes
from chatmetrics.pipelines.pools import Pool, load_pools
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import requests_of

# Without a dataset: as many questions as were published, of Spider's lengths by form of schema, in tokens of the
# published base; those that questions of a database have in common, and an example's own. docs/training.md has the
# command that counts them.
QUESTIONS = 7_000
SPIDER = {"none": (22, 51), "ddl": (342, 54), "m-schema": (763, 59)}
ANSWER = 37


@dataclass(frozen=True)
class Estimate:
    """Of one recipe on one pool.

    Attributes:
        pool: where it runs.
        settings: the recipe's, fitted to the pool.
        memory: of one GPU, by part; without GPUs of the pod.
        available: bytes of the same.
        workload: of an epoch.
        steps: of the whole training.
        hours: at the pool's utilization; 0 where its peak is unknown.
        cost: of as many GPUs as there are processes.
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
        """Bytes that are left; negative where it does not fit."""
        return self.available - self.memory.total


def estimate(recipe: Recipe, pool: Pool, sizes: Sizes, counted: Workload | None = None) -> Estimate:
    """Estimate a recipe's training on a pool.

    Args:
        recipe: the recipe.
        pool: the pool.
        sizes: of the base.
        counted: what an epoch of its dataset is; without, one like Spider's is assumed.
    """
    settings = pool.fitted(recipe.train)
    epoch = counted or _like_spider(recipe, settings)
    examples_per_step = settings.examples_per_step
    steps = settings.max_steps or math.ceil(math.ceil(epoch.examples / examples_per_step) * settings.epochs)
    epochs = steps * examples_per_step / epoch.examples
    packs = max(1.0, epoch.examples / examples_per_step)
    flops = epochs * sizes.flops(
        epoch.computed_tokens, epoch.answer_tokens, epoch.computed_tokens / packs, settings.gradient_checkpointing
    )
    speed = pool.peak_tflops * 1e12 * pool.utilization * settings.processes
    hours = flops / speed / 3600 if speed else 0.0
    return Estimate(
        pool=pool,
        settings=settings,
        memory=memory_of(
            sizes,
            settings,
            dense=not _flexible(pool, settings),
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
    """Refuse a run that would end for want of memory.

    Raises:
        InputError: says what it needs, what there is, and what would make it fit.
    """
    found = estimate(recipe, pools[pool_name], sizes, counted)
    if found.spare >= 0:
        return
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in found.memory.parts() if size >= GIB / 20)
    there = "a GPU of the pool" if pools[pool_name].gpu_memory_gib else "the train pod on the pool"
    raise InputError(
        f"{recipe.name}: training takes {found.memory.total / GIB:.1f} GiB ({parts}), {there} {pool_name} has "
        f"{found.available / GIB:.1f}; {_advice(recipe, pool_name, pools, sizes, counted)}"
    )


def check_pool(recipe: Recipe, pool_name: str, pool: Pool) -> None:
    """`check_fits` of a pool that may be the user's own, beside those that come with ChatMetrics.

    Raises:
        InputError: it does not fit, or neither the base's config.json nor its size is known.
    """
    check_fits(recipe, pool_name, load_pools() | {pool_name: pool}, base_sizes(recipe))


def _advice(recipe: Recipe, pool_name: str, pools: Mapping[str, Pool], sizes: Sizes, counted: Workload | None) -> str:
    """The least change of the recipe that makes it fit, and the smallest pool that it fits as it is."""
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
    if name := next(fitting, None):
        advice.append(f"--gpu-pool {name} takes it as it is")
    return ", or ".join(advice) or "choose a smaller base or train.cutoff_length, or describe a larger pool in --pools"


def _changes(train: TrainSettings, has_gpu: bool) -> Iterable[dict[str, Any]]:
    checkpointing = {"gradient_checkpointing": True}
    smaller = {"batch_size": 1, "gradient_accumulation": train.batch_size * train.gradient_accumulation}
    yield checkpointing
    if train.batch_size > 1:
        yield smaller
        yield smaller | checkpointing
    if has_gpu:
        yield smaller | checkpointing | {"quantize_base": "nf4"}


def _like_spider(recipe: Recipe, settings: TrainSettings) -> Workload:
    shared, own = SPIDER[recipe.preprocess.schema_form]
    together = settings.questions_per_schema if settings.packing else 1
    return Workload(
        examples=QUESTIONS,
        tokens=QUESTIONS * (shared + own),
        computed_tokens=round(QUESTIONS * (shared / together + own)),
        answer_tokens=QUESTIONS * ANSWER,
        largest_pack=0,
    )


def _flexible(pool: Pool, settings: TrainSettings) -> bool:
    return settings.packing and settings.attention != "sdpa" and pool.compute_capability >= FLEX_CAPABILITY


def _available(pool: Pool, recipe: Recipe) -> float:
    if pool.gpu_memory_gib:
        return pool.gpu_memory_gib * GIB
    return float(parse_quantity(requests_of(recipe)["train"].memory))
