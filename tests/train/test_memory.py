"""The estimate of memory against what training really takes, and the published runs on the GPUs that they ran on."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.estimate.memory import Memory, memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.settings import TrainSettings
from tests.train.memory_of_a_step import CASES, CONFIG_7B, estimated, peak_of_allocator, write_base

pytestmark = pytest.mark.usefixtures("one_thread")

GIB = 2**30
A100, V100, RTX_4090 = 39.4 * GIB, 31.7 * GIB, 23.5 * GIB  # what their drivers leave


@pytest.mark.skipif(torch.cuda.is_available(), reason="what torch's allocator counts is a CPU's")
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_what_training_takes(name: str, tmp_path: Path) -> None:
    base = write_base(CASES[name], tmp_path)
    assert estimated(CASES[name], base).total == pytest.approx(peak_of_allocator(CASES[name], base), rel=0.1)


def of_7b(dense: bool = False, shards: int = 1, tokens: int = 0, **settings: object) -> Memory:
    sizes = Sizes.of(CONFIG_7B)
    return memory_of(sizes, TrainSettings.model_validate(settings), dense=dense, shards=shards, tokens=tokens)


def test_the_published_runs_fit_the_gpus_that_they_ran_on() -> None:
    assert of_7b(precision="bf16", batch_size=2).total < A100
    assert of_7b(precision="fp16", batch_size=1, dense=True).total < V100
    assert of_7b(precision="bf16", batch_size=1, gradient_checkpointing=True).total < RTX_4090


def test_what_was_not_run_there_does_not() -> None:
    assert of_7b(precision="bf16", batch_size=4).total > A100
    assert of_7b(precision="fp16", batch_size=2, dense=True).total > V100
    assert of_7b(precision="bf16", batch_size=1).total > RTX_4090


def test_in_4_bits_a_7b_fits_8_gib() -> None:
    assert of_7b(batch_size=1, gradient_checkpointing=True, quantize_base="nf4").total < 8 * GIB


def test_the_weights_are_those_of_a_7b_shared_among_devices() -> None:
    alone, shared = (of_7b(shards=shards) for shards in (1, 4))
    assert alone.weights == pytest.approx(2 * 7.615e9, rel=1e-3)
    assert shared.weights == pytest.approx(alone.weights / 4, rel=1e-3) and shared.buffers > alone.buffers


def test_without_a_size_it_is_the_largest_pack_that_is_allowed() -> None:
    settings = {"batch_size": 3, "cutoff_length": 512}
    assert of_7b(**settings) == of_7b(**settings, tokens=1536)
    assert of_7b(**settings, pack_tokens=700) == of_7b(**settings, pack_tokens=700, tokens=700)
    # An example is never cut, and padded batches are no packs.
    assert of_7b(**settings, pack_tokens=100) == of_7b(**settings, pack_tokens=100, tokens=512)
    padded = {**settings, "packing": False}
    assert of_7b(**padded, pack_tokens=700) == of_7b(**padded, tokens=1536)


def test_a_base_of_another_kind_is_named() -> None:
    with pytest.raises(InputError, match=r"config\.json has no intermediate_size"):
        Sizes.of({name: size for name, size in CONFIG_7B.items() if name != "intermediate_size"})


def test_it_is_known_without_torch() -> None:
    program = "import sys, chatmetrics.components.train.estimate.memory; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
