"""How the examples of a step become what a device computes at once, as settings, model and device allow."""

from collections.abc import Callable
from functools import partial

import torch
from transformers.utils import is_flash_attn_2_available

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.data.trees import Pack, TokenizedExample, cheapest_parts, padded_pack, tree_pack
from chatmetrics.components.train.settings import FLEX_CAPABILITY, TrainSettings

# Beside its tokens a pack costs about as much as these: measured on a CPU.
TOKENS_PER_PACK = 100


def attention_implementation(settings: TrainSettings) -> str:
    """The one that the recipe names, or the best for its packs on this device.

    Raises:
        InputError: the one that is named would ignore the mask of a tree, or is not to be had here.
    """
    named = settings.attention
    compiles = torch.cuda.is_available() and _capability() >= FLEX_CAPABILITY
    if named == "auto":
        return "flex_attention" if settings.packing and compiles else "sdpa"
    if named == "flash_attention_2" and settings.packing:
        raise InputError(
            f"attention {named} ignores the mask of a tree, so that the examples of a pack would see each other; "
            "set train.attention to auto, or train.packing to false"
        )
    if (named == "flash_attention_2" and not is_flash_attn_2_available()) or (
        named == "flex_attention" and not compiles
    ):
        raise InputError(f"attention {named} is not to be had on this machine; set train.attention to auto")
    return named


def packing(settings: TrainSettings, attention_tokens: float) -> Callable[[list[TokenizedExample]], list[Pack]]:
    """What makes packs of a process's examples of a step.

    Args:
        settings: the recipe's `train` section.
        attention_tokens: of the model, see `Sizes.attention_tokens`; where a step is cut depends on it.
    """
    if not settings.packing:
        return partial(_batches, batch_size=settings.batch_size)
    most = settings.pack_tokens or settings.batch_size * settings.cutoff_length
    return partial(_trees, most=most, attention_tokens=attention_tokens)


def _batches(examples: list[TokenizedExample], batch_size: int) -> list[Pack]:
    """Padded batches. Which batch of a step an example is in is all the same, so those of like length share one."""
    by_length = sorted(examples, key=lambda example: len(example.ids))
    return [padded_pack(by_length[first : first + batch_size]) for first in range(0, len(by_length), batch_size)]


def _trees(examples: list[TokenizedExample], most: int, attention_tokens: float) -> list[Pack]:
    def cost(tokens: int) -> float:
        return TOKENS_PER_PACK + tokens * (1 + tokens / attention_tokens)

    return [tree_pack(part) for part in cheapest_parts(examples, most, cost)]


def _capability() -> float:
    major, minor = torch.cuda.get_device_capability()
    return major + minor / 10
