"""What to say when training runs out of memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.estimate.memory import GIB, REMEDIES, Memory

CPU_SIGNS = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Cannot allocate memory")


@contextmanager
def explain_out_of_memory(estimated: Memory, doing: Callable[[], str]) -> Iterator[None]:
    """Raise an out-of-memory error of the block as one that says what it was thought to take.

    Args:
        estimated: that.
        doing: says when, or at what, it happened.

    Raises:
        InputError: there was not enough memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in estimated.parts() if size >= GIB / 200)
        raise InputError(
            f"out of memory {doing()}: {_device()}; the estimate was {estimated.total / GIB:.2f} GiB ({parts}) and was "
            f"wrong, or something else is there; {REMEDIES}"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in CPU_SIGNS)


def _device() -> str:
    if not torch.cuda.is_available():
        return "this machine gives no more"
    there = torch.cuda.get_device_properties(0).total_memory / GIB
    return f"{torch.cuda.max_memory_allocated() / GIB:.2f} of the GPU's {there:.2f} GiB were taken"
