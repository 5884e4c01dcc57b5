"""How much memory an Ollama server needs for its models."""

import math
from collections.abc import Sequence

MIB = 2**20
# The server itself, a runner for each model, and the context's keys and values: a twentieth of the weights for the
# 2,048 tokens of a 7B model at 4 bits, and twice that to be on the safe side.
SERVER_MIB, RUNNER_MIB, CONTEXT_SHARE = 128, 192, 0.1


def memory_mib(weights: Sequence[int], concurrency: int) -> int:
    """Mebibytes for models that are loaded together.

    Ollama reads weights into memory, it does not map them, so they count in full.

    Args:
        weights: size of each model's GGUF, bytes.
        concurrency: questions that each answers at once; every one takes a context.
    """
    loaded = sum(weights) * (1 + CONTEXT_SHARE * concurrency)
    return SERVER_MIB + RUNNER_MIB * len(weights) + math.ceil(loaded / MIB)
