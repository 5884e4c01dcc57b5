from pathlib import Path

import numpy as np
import pytest
import torch

from chatmetrics.components.train.checkpoints.checksums import seal
from chatmetrics.components.train.data.trees import Pack, TokenizedExample
from chatmetrics.components.train.model.nan_loss import NanLossReporter
from tests.train.small_dataset import write_dataset

EXAMPLES = [TokenizedExample(np.arange(number, number + 4, dtype=np.int32), 2) for number in range(8)]


def losses_nan_for(*first_ids: int) -> object:
    def losses(pack: Pack) -> torch.Tensor:
        bad = int(pack["input_ids"][0, 0]) in first_ids
        return torch.tensor([1.0, float("nan") if bad else 1.0])

    return losses


@pytest.fixture
def reporter(tmp_path: Path) -> NanLossReporter:
    return NanLossReporter(write_dataset(tmp_path / "dataset"), tmp_path / "checkpoints", EXAMPLES)


def test_examples_with_a_nan_loss_are_named(reporter: NanLossReporter) -> None:
    message = str(reporter.error("the loss is nan", 7, [1, 3, 5], losses_nan_for(3)))  # type: ignore[arg-type]
    assert message.startswith("the loss is nan at step 7 (not finite for 1 of its 3 examples: q3)")


def test_all_examples_are_named_if_each_alone_has_a_finite_loss(reporter: NanLossReporter) -> None:
    assert "at step 7 (examples q1, q3, q5)" in str(reporter.error("the norm is inf", 7, [1, 3, 5], losses_nan_for()))  # type: ignore[arg-type]


def test_the_last_good_checkpoint_is_named(reporter: NanLossReporter, tmp_path: Path) -> None:
    for step in (4, 8):
        checkpoint = tmp_path / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_bytes(b"1")
        if step == 4:
            seal(checkpoint)
    message = str(reporter.error("the loss is nan", 9, [1], losses_nan_for(1)))  # type: ignore[arg-type]
    assert f"the last good checkpoint is {tmp_path}/checkpoints/checkpoint-4;" in message
