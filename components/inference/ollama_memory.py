"""Estimate of the memory that an Ollama server needs for its models."""

import math
from collections.abc import Sequence

MIB = 2**20
# The server, a runner per model, and the keys and values of a context. For 2,048 tokens of a 7B model at 4 bits these
# take a twentieth of the weights; twice that is a safe estimate.
SERVER_MIB, RUNNER_MIB, CONTEXT_SHARE = 128, 192, 0.1


def memory_mib(weights: Sequence[int], concurrency: int) -> int:
    """Mebibytes of memory for models that are loaded at the same time.

    Ollama reads weights into memory instead of mapping them, so they count in full.

    Args:
        weights: size of each model's GGUF file in bytes.
        concurrency: number of questions that each model answers at the same time; each takes a context.
    """
    loaded = sum(weights) * (1 + CONTEXT_SHARE * concurrency)
    return SERVER_MIB + RUNNER_MIB * len(weights) + math.ceil(loaded / MIB)
