"""Explains why training ran out of memory: the estimate, by part, and the settings that lower it.

The launcher uses this module too and has no need of torch, whose import takes seconds; so torch is imported late.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components.errors import InputError, ServiceError, UserError
from chatmetrics.components.train.estimate.memory import GIB, Memory

# Texts of RuntimeErrors by which torch and C++ report that a CPU's memory is exhausted.
CPU_MESSAGES = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Cannot allocate memory")
# And those by which CUDA and its libraries report it when they, and not torch, allocate.
GPU_MESSAGES = ("out of memory", "STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation")
MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")  # a container's, in cgroup v2
REMEDIES = (
    "lower train.batch_size (and raise train.gradient_accumulation) or train.pack_tokens, set train."
    "gradient_checkpointing=true or train.quantize_base=nf4, or take a larger pool: `chatmetrics estimate` compares"
)


@contextmanager
def explain_out_of_memory(
    estimated: Memory, doing: Callable[[], str], progress: Callable[[], Path | None] = lambda: None
) -> Iterator[None]:
    """Turn an out-of-memory error of the block into one that names the estimate and what to set.

    Args:
        estimated: the memory that training was estimated to take.
        doing: returns when the error happened, for example "at step 3".
        progress: returns the newest checkpoint of this attempt, or None.

    Raises:
        InputError: the device ran out of memory; see `out_of_memory_error`.
        ServiceError: likewise.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _is_out_of_memory(error):
            raise
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in estimated.parts() if size >= GIB / 200)
        raise out_of_memory_error(
            f"out of memory {doing()}: {_device_memory()}; the estimate was {estimated.total / GIB:.2f} GiB ({parts}), "
            "so either it is wrong or something else takes memory",
            progress(),
        ) from error


def out_of_memory_error(what: str, progress: Path | None) -> UserError:
    """The error for training that ran out of memory.

    Before the first checkpoint of an attempt it is an InputError, which ends all retries: the next attempt would repeat
    the same steps. After one, memory may have been fragmented or another program may have taken it, and a retry starts
    with fresh memory from that checkpoint; if it does not reach another one, that is final.

    Args:
        what: what happened.
        progress: the newest checkpoint of this attempt, or None.
    """
    if progress is None:
        return InputError(f"{what}; {REMEDIES}")
    return ServiceError(f"{what}; a retry resumes from {progress.name}; if that runs out of memory too, {REMEDIES}")


def killed_for_memory() -> int:
    """How many processes of this container the kernel has killed because memory ran out; 0 where it is not recorded."""
    try:
        events = dict(line.split() for line in MEMORY_EVENTS.read_text().splitlines())
    except OSError:
        return 0
    return int(events.get("oom_kill", 0))


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(message in str(error) for message in CPU_MESSAGES + GPU_MESSAGES)


def _device_memory() -> str:
    import torch

    if not torch.cuda.is_available():
        return "this machine has no more"
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    return f"{torch.cuda.max_memory_allocated() / GIB:.2f} of the GPU's {total:.2f} GiB were in use"
