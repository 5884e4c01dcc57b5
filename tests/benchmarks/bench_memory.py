"""Compares the memory estimate with the memory that training takes of a whole process or, on a GPU, of its memory.

`python -m tests.benchmarks.bench_memory` prints the same as `make bench`. glibc is told to return memory as soon as it
is freed. With the settings of launch.py, which favor speed, a process on a CPU keeps two to three times as much.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from chatmetrics.components.train.estimate.memory import memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.settings import TrainSettings
from tests.train.memory_of_a_step import CHECKPOINTING, CONFIG_7B, PACKED, Case, estimated, write_base

HALF = {"precision": "bf16"} if torch.cuda.is_available() else {}
MIB = 2**20
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "OMP_WAIT_POLICY": "PASSIVE"}
CASES = {
    "8 layers of 512, packed": Case(512, 2048, 8, 8, 2, 8000, 1024, 80, settings=HALF | PACKED),
    "the same, checkpointing": Case(512, 2048, 8, 8, 2, 8000, 1024, 80, settings=HALF | PACKED | CHECKPOINTING),
    "the same, padded": Case(512, 2048, 8, 8, 2, 8000, 1024, 80, settings=HALF),
    "24 layers of 256, Llama": Case(256, 704, 24, 8, 8, 4000, 1024, 80, kind="llama", tied=True, settings=HALF),
    "2 layers, vocabulary 152064": Case(512, 1408, 2, 8, 2, 152064, 512, 160, settings=HALF | PACKED),
}

if torch.cuda.is_available():  # on a CPU the mapped file of the base would count too
    CASES["4 bits, 8 layers of 1024"] = Case(
        1024, 2816, 8, 8, 2, 8000, 512, 80, settings=HALF | PACKED | CHECKPOINTING | {"quantize_base": "nf4"}
    )

PUBLISHED: dict[str, tuple[bool, dict[str, Any]]] = {
    "bf16, FlexAttention": (False, {}),
    "fp16, SDPA": (True, {"precision": "fp16"}),
    "checkpointing": (True, CHECKPOINTING),
    "4 bits, checkpointing": (True, CHECKPOINTING | {"quantize_base": "nf4"}),
}


def test_estimates_of_a_7b() -> None:
    print(f"\n{'estimated GiB, 7B':32} batch size 2         1")
    for name, (dense, options) in PUBLISHED.items():
        settings = [TrainSettings.model_validate(options | {"batch_size": size}) for size in (2, 1)]
        two, one = (memory_of(Sizes.of(CONFIG_7B), it, dense=dense).total / 2**30 for it in settings)
        print(f"{name:32} {two:12.1f} {one:9.1f}")


def test_bench_memory(tmp_path: Path) -> None:
    print(f"\n{'':32} peak MiB  estimated    error")
    for number, (name, case) in enumerate(CASES.items()):
        base = write_base(case, tmp_path / str(number))
        command = [sys.executable, "-m", "tests.train.memory_of_a_step", json.dumps(asdict(case)), str(base)]
        environment = os.environ | ENVIRONMENT
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
        total = estimated(case, base).total
        print(f"{name:32} {peak / MIB:8.0f} {total / MIB:10.0f} {total / peak - 1:8.1%}", flush=True)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", "-q", "-o", "python_files=bench_*.py", *sys.argv[1:]]))
