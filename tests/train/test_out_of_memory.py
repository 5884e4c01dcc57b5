import pytest
import torch

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.estimate.memory import memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.components.train.watch.out_of_memory import explain_out_of_memory

SMALL = Sizes(
    layers=4, hidden=512, intermediate=1408, heads=8, key_value_heads=2, head_width=64, vocabulary=50_000, tied=True
)
ESTIMATED = memory_of(SMALL, TrainSettings(precision="fp32"), gpu=False)


def test_the_error_contains_the_estimate_and_the_settings_that_help() -> None:
    with pytest.raises(InputError) as caught, explain_out_of_memory(ESTIMATED, lambda: "at step 3"):
        torch.empty(2**60, dtype=torch.int8)  # a real allocation that fails
    message = str(caught.value)
    assert message.startswith("out of memory at step 3: ") and "\n" not in message
    assert f"the estimate was {ESTIMATED.total / 2**30:.2f} GiB (" in message and "activations" in message
    assert "train.gradient_checkpointing=true" in message and "chatmetrics estimate" in message


def test_the_error_of_a_gpu_is_recognized() -> None:
    with pytest.raises(InputError, match="out of memory"), explain_out_of_memory(ESTIMATED, lambda: "at step 3"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(ESTIMATED, lambda: "at step 3"):
        torch.ones(2, 3) @ torch.ones(2, 3)
