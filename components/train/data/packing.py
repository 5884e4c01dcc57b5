"""Turns the examples of a step into packs, the tokens that a device computes at once."""

from collections.abc import Callable
from functools import partial

from chatmetrics.components.train.data.trees import Pack, TokenizedExample, cheapest_parts, padded_pack, tree_pack
from chatmetrics.components.train.settings import TrainSettings

# The fixed cost of a pack, in tokens: measured on a CPU.
TOKENS_PER_PACK = 100


def packing(settings: TrainSettings, attention_tokens: float) -> Callable[[list[TokenizedExample]], list[Pack]]:
    """Return the function that packs a process's examples of a step.

    Args:
        settings: the recipe's `train` section.
        attention_tokens: `Sizes.attention_tokens` of the model, which decides where cutting a tree pays.
    """
    if not settings.packing:
        return partial(_padded_batches, batch_size=settings.batch_size)
    tokens = settings.pack_tokens or settings.batch_size * settings.cutoff_length
    return partial(_trees, tokens=tokens, attention_tokens=attention_tokens)


def _padded_batches(examples: list[TokenizedExample], batch_size: int) -> list[Pack]:
    """Padded batches; batches of a step may be composed freely, so examples of similar length share one."""
    by_length = sorted(examples, key=lambda example: len(example.ids))
    return [padded_pack(by_length[first : first + batch_size]) for first in range(0, len(by_length), batch_size)]


def _trees(examples: list[TokenizedExample], tokens: int, attention_tokens: float) -> list[Pack]:
    """Trees of at most `tokens` tokens whose total cost is lowest.

    The cost of a tree of n tokens is that of a pack, plus n for the layers' matrices, plus n * n / attention_tokens for
    attention, which computes all pairs of tokens although the mask drops most of them.
    """

    def cost(size: int) -> float:
        return TOKENS_PER_PACK + size * (1 + size / attention_tokens)

    return [tree_pack(part) for part in cheapest_parts(examples, tokens, cost)]
