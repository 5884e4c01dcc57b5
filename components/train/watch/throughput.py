"""Measures how fast training is: tokens per second, and model FLOPs utilization (MFU)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import torch

from chatmetrics.components.train.estimate.memory import GIB
from chatmetrics.components.train.estimate.sizes import Sizes

# Dense half-precision peaks in TFLOPS, from NVIDIA's data sheets and white papers, by words in the device's name; the
# entry with the most matching words counts.
PEAKS = {
    "H200": 989,
    "H200 NVL": 835,
    "H100": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "A100": 312,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "V100": 125,
    "V100 PCIE": 112,
    "T4": 65,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
# Words in the names of partial GPUs (MIG) and of slower ones that share the name of a faster one.
UNKNOWN_WORDS = {"MIG", "LAPTOP", "TI", "D"}


@dataclass
class TrainingCounts:
    """Counts of what was computed so far in a run.

    Attributes:
        tokens: tokens of all processes' examples, each counted in full.
        computed_tokens: tokens that this process computed for them.
        flops: operations of this process, without those that gradient checkpointing repeats.
    """

    tokens: int = 0
    computed_tokens: int = 0
    flops: float = 0.0


class ThroughputMeter:
    """Measures the speed since the process started to train, without pauses for checkpoints and dev questions.

    Args:
        counts: the counts, which the trainer increases.
        sizes: the model's sizes.
        precision: bf16, fp16 or fp32.
    """

    def __init__(self, counts: TrainingCounts, sizes: Sizes, precision: str) -> None:
        self._counts, self._sizes = counts, sizes
        self._peak = peak_tflops(torch.cuda.get_device_name(), precision) if torch.cuda.is_available() else 0.0
        self.start()

    def start(self) -> None:
        """Start measuring now."""
        self._started, self._tokens, self._flops = monotonic(), self._counts.tokens, self._counts.flops

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block."""
        began = monotonic()
        yield
        self._started += monotonic() - began

    def count(self, packs: list[int], answer_tokens: int) -> None:
        """Add packs to the counts, given the number of tokens of each and of answer tokens in all of them."""
        tokens = sum(packs)
        squares = sum(pack**2 for pack in packs)
        self._counts.computed_tokens += tokens
        self._counts.flops += self._sizes.flops(tokens, answer_tokens, squares / tokens, checkpointing=False)

    def measures(self) -> dict[str, float]:
        """Tokens per second; on a GPU also its peak memory and, if its peak TFLOPS are known, MFU."""
        seconds = max(monotonic() - self._started, 1e-9)
        found = {"tokens_per_second": round((self._counts.tokens - self._tokens) / seconds, 1)}
        if self._peak:
            found["mfu"] = round((self._counts.flops - self._flops) / seconds / (self._peak * 1e12), 4)
        if torch.cuda.is_available():
            found["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        return found

    def line(self) -> str:
        """The measures as text."""
        found = self.measures()
        parts = [f"{found['tokens_per_second']:,.0f} tokens/s"]
        if "mfu" in found:
            parts.append(f"MFU {found['mfu']:.0%}")
        if "gpu_memory_gib" in found:
            total = torch.cuda.get_device_properties(0).total_memory / GIB
            parts.append(f"{found['gpu_memory_gib']:.1f} of {total:.1f} GiB")
        return ", ".join(parts)


def peak_tflops(device: str, precision: str) -> float:
    """The dense half-precision peak of a GPU by its name; 0 if it is not known, and for fp32."""
    words = set(re.split(r"[^A-Z0-9]+", device.upper()))
    if precision == "fp32" or words & UNKNOWN_WORDS:
        return 0.0
    known = [name for name in PEAKS if words.issuperset(name.upper().split())]
    return float(PEAKS[max(known, key=lambda name: len(name.split()))]) if known else 0.0
