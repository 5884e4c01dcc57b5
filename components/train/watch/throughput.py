"""How fast training is: tokens a second, and how much of what the device could do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import torch

from chatmetrics.components.train.estimate.memory import GIB
from chatmetrics.components.train.estimate.sizes import Sizes

# Dense half-precision peaks, of NVIDIA's data sheets and white papers, in TFLOPS, by words of the device's name; the
# entry with most of them counts.
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
# A part of a GPU, or one that shares the name of a faster one.
OTHERS = {"MIG", "LAPTOP", "TI", "D"}


@dataclass
class TrainingCounts:
    """What this process has computed of a run so far.

    Attributes:
        tokens: of all processes' examples, each in full.
        computed_tokens: what this one computed for them.
        flops: of this one, without what gradient checkpointing computes twice.
    """

    tokens: int = 0
    computed_tokens: int = 0
    flops: float = 0.0


class ThroughputMeter:
    """Speed since the process began to train, without the time of what is no training.

    Args:
        counts: what goes on being counted.
        sizes: of the model.
        precision: of the arithmetic.
    """

    def __init__(self, counts: TrainingCounts, sizes: Sizes, precision: str) -> None:
        self._counts, self._sizes = counts, sizes
        self._peak = peak_tflops(torch.cuda.get_device_name(), precision) if torch.cuda.is_available() else 0.0
        self.start()

    def start(self) -> None:
        """Measure from now on."""
        self._started, self._tokens, self._flops = monotonic(), self._counts.tokens, self._counts.flops

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the block."""
        began = monotonic()
        yield
        self._started += monotonic() - began

    def count(self, packs: list[int], answer_tokens: int) -> None:
        """Add the operations of packs of so many tokens, with so many answer tokens in all."""
        tokens = sum(packs)
        squares = sum(pack**2 for pack in packs)
        self._counts.computed_tokens += tokens
        self._counts.flops += self._sizes.flops(tokens, answer_tokens, squares / tokens, checkpointing=False)

    def measures(self) -> dict[str, float]:
        """Tokens of examples a second; on a GPU also its memory at the peak, and MFU where its own peak is known."""
        seconds = max(monotonic() - self._started, 1e-9)
        found = {"tokens_per_second": round((self._counts.tokens - self._tokens) / seconds, 1)}
        if self._peak:
            found["mfu"] = round((self._counts.flops - self._flops) / seconds / (self._peak * 1e12), 4)
        if torch.cuda.is_available():
            found["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        return found

    def line(self) -> str:
        """The same for people."""
        found = self.measures()
        parts = [f"{found['tokens_per_second']:,.0f} tokens/s"]
        if "mfu" in found:
            parts.append(f"MFU {found['mfu']:.0%}")
        if "gpu_memory_gib" in found:
            there = torch.cuda.get_device_properties(0).total_memory / GIB
            parts.append(f"{found['gpu_memory_gib']:.1f} of {there:.1f} GiB")
        return ", ".join(parts)


def peak_tflops(device: str, precision: str) -> float:
    """The dense half-precision peak of a GPU by its name; 0 where it is not known, and for another precision."""
    words = set(re.split(r"[^A-Z0-9]+", device.upper()))
    if precision == "fp32" or words & OTHERS:
        return 0.0
    known = [name for name in PEAKS if words.issuperset(name.upper().split())]
    return float(PEAKS[max(known, key=lambda name: len(name.split()))]) if known else 0.0
