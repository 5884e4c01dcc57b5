"""The memory estimate compared with what training takes, and with the GPUs of the published runs."""

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
A100, V100, RTX_4090 = 39.4 * GIB, 31.7 * GIB, 23.5 * GIB  # available after the driver's share


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch's allocator is measured on the CPU")
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_ten_percent_of_what_training_takes(name: str, tmp_path: Path) -> None:
    base = write_base(CASES[name], tmp_path)
    assert estimated(CASES[name], base).total == pytest.approx(peak_of_allocator(CASES[name], base), rel=0.1)


def memory_of_7b(dense: bool = False, shards: int = 1, tokens: int = 0, **settings: object) -> Memory:
    sizes = Sizes.of(CONFIG_7B)
    return memory_of(sizes, TrainSettings.model_validate(settings), dense=dense, shards=shards, tokens=tokens)


def test_the_published_runs_fit_their_gpus() -> None:
    assert memory_of_7b(precision="bf16", batch_size=2).total < A100
    assert memory_of_7b(precision="fp16", batch_size=1, dense=True).total < V100
    assert memory_of_7b(precision="bf16", batch_size=1, gradient_checkpointing=True).total < RTX_4090


def test_larger_batches_than_the_published_ones_do_not_fit() -> None:
    assert memory_of_7b(precision="bf16", batch_size=4).total > A100
    assert memory_of_7b(precision="fp16", batch_size=2, dense=True).total > V100
    assert memory_of_7b(precision="bf16", batch_size=1).total > RTX_4090


def test_a_7b_in_4_bits_fits_in_8_gib() -> None:
    assert memory_of_7b(batch_size=1, gradient_checkpointing=True, quantize_base="nf4").total < 8 * GIB


def test_sharded_weights_of_a_7b_are_divided_among_devices() -> None:
    alone, shared = (memory_of_7b(shards=shards) for shards in (1, 4))
    assert alone.weights == pytest.approx(2 * 7.615e9, rel=1e-3)
    assert shared.weights == pytest.approx(alone.weights / 4, rel=1e-3) and shared.buffers > alone.buffers


def test_without_tokens_the_largest_allowed_pack_is_estimated() -> None:
    settings = {"batch_size": 3, "cutoff_length": 512}
    assert memory_of_7b(**settings) == memory_of_7b(**settings, tokens=1536)
    assert memory_of_7b(**settings, pack_tokens=700) == memory_of_7b(**settings, pack_tokens=700, tokens=700)
    # An example is never cut, and pack_tokens does not apply to padded batches.
    assert memory_of_7b(**settings, pack_tokens=100) == memory_of_7b(**settings, pack_tokens=100, tokens=512)
    padded = {**settings, "packing": False}
    assert memory_of_7b(**padded, pack_tokens=700) == memory_of_7b(**padded, tokens=1536)


def test_a_missing_size_in_config_json_is_named() -> None:
    with pytest.raises(InputError, match=r"config\.json has no intermediate_size"):
        Sizes.of({name: size for name, size in CONFIG_7B.items() if name != "intermediate_size"})


def test_the_estimate_does_not_import_torch() -> None:
    program = "import sys, chatmetrics.components.train.estimate.memory; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
