"""fp16, as on a V100: with a GradScaler, which refuses gradients in fp16, and an adapter in fp32."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from chatmetrics.components.train.data.trees import tree_pack
from chatmetrics.components.train.model.answer_loss import give_answer_loss
from chatmetrics.components.train.model.base import add_adapter
from chatmetrics.components.train.settings import TrainSettings
from tests.models import tiny_base
from tests.train.test_trees import random_examples


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_base_in_fp16_trains_with_a_gradient_scaler(gradient_checkpointing: bool, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path), dtype=torch.float16)
    give_answer_loss(base)
    model = add_adapter(base, TrainSettings()).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    assert base.get_output_embeddings().weight.dtype == torch.float16
    optimizer, scaler = torch.optim.AdamW(trained, lr=1e-2), torch.amp.GradScaler("cpu", init_scale=2**10)
    pack, losses = tree_pack(random_examples(0)), []
    for _ in range(3):
        with torch.autocast("cpu", torch.float16):
            loss = model(**pack).mean()
        losses.append(loss.item())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # it raises if a gradient is in fp16
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert losses[2] < losses[0]
    assert scaler.get_scale() == 2**10  # no step was skipped
