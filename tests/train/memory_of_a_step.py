"""Measures the memory that training steps of various small base models take, and estimates it.

    python -m tests.train.memory_of_a_step CASE FOLDER

prints the peak of a whole process for one case, given as JSON; FOLDER is its base model.
"""

import gc
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from chatmetrics.components.train.data.trees import Pack, TokenizedExample, padded_pack, tree_pack
from chatmetrics.components.train.estimate.memory import Memory, memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.model.base import add_adapter, load_model
from chatmetrics.components.train.model.device import DeviceSettings, attention_implementation
from chatmetrics.components.train.settings import TrainSettings

# Sizes of DeepSeek-R1-Distill-Qwen-7B.
CONFIG_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# What torch.compile may leave behind in the process: their data pointers cannot be read.
WITHOUT_MEMORY = (FakeTensor, FunctionalTensor)


@dataclass(frozen=True)
class Case:
    """Sizes of a base model and of two examples, and settings."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tokens: int
    answers: int
    kind: str = "qwen2"
    tied: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def train_settings(self) -> TrainSettings:
        return TrainSettings.model_validate({"precision": "fp32", "packing": False, **self.settings})


CHECKPOINTING = {"gradient_checkpointing": True}
PACKED = {"packing": True}
CASES = {
    "a wide MLP": Case(192, 768, 3, 6, 2, 2000, 256, 40, settings=PACKED),
    "with checkpointing": Case(192, 768, 4, 6, 2, 2000, 256, 40, settings=PACKED | CHECKPOINTING),
    "padded": Case(192, 512, 3, 4, 1, 2000, 256, 40),
    "many narrow layers": Case(96, 192, 12, 4, 4, 1000, 256, 40, kind="llama", tied=True),
    "many, with checkpointing": Case(96, 192, 12, 4, 4, 1000, 256, 40, kind="llama", settings=CHECKPOINTING),
    "a large vocabulary": Case(64, 128, 2, 4, 2, 50000, 200, 100, tied=True, settings=PACKED),
    "logits in pieces": Case(16, 32, 2, 4, 2, 200000, 200, 180),
    "bf16": Case(128, 384, 2, 4, 2, 1000, 256, 40, settings=PACKED | {"precision": "bf16"}),
    "4 bits": Case(192, 768, 3, 6, 2, 1000, 128, 40, settings=CHECKPOINTING | {"quantize_base": "nf4"}),
    "few targets of a high rank": Case(
        192, 384, 3, 6, 6, 1000, 256, 40, settings={"lora_targets": ("q_proj", "v_proj"), "lora_rank": 64}
    ),
    "dropout": Case(192, 384, 3, 6, 3, 1000, 256, 40, settings={"lora_dropout": 0.1}),
}
TINY = Case(64, 128, 2, 4, 2, 1000, 64, 20, settings=PACKED)


def write_base(case: Case, folder: Path) -> Path:
    config = AutoConfig.for_model(
        case.kind,
        hidden_size=case.hidden,
        intermediate_size=case.intermediate,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.key_heads,
        vocab_size=case.vocabulary,
        tie_word_embeddings=case.tied,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def estimated(case: Case, base: Path) -> Memory:
    config = json.loads((base / "config.json").read_bytes())
    return memory_of(
        Sizes.of(config), case.train_settings(), tokens=case.tokens, answers=case.answers, gpu=DEVICE != "cpu"
    )


def training_step(case: Case, base: Path) -> Callable[[], None]:
    """Load the base model; return a function that computes a training step."""
    settings = case.train_settings()
    device = DeviceSettings(DEVICE != "cpu", settings.precision, attention_implementation(settings))
    model = add_adapter(load_model(base, settings, device), settings).to(DEVICE).train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)
    pack = _pack(case)

    def step() -> None:
        with torch.autocast(DEVICE, device.dtype, enabled=settings.precision != "fp32"):
            loss = model(**pack).mean()
        loss.backward()
        optimizer.step()

    return step


def peak_of_allocator(case: Case, base: Path) -> int:
    """Peak bytes of tensors in two steps on a CPU: those that exist before, and what torch's allocator counts after.

    The allocator's profile would miss some of the loaded weights, which threads allocate.
    """
    gc.collect()  # remains of an earlier case would be counted when they are freed
    before = _live_storages()
    step = training_step(case, base)
    gc.collect()
    live = peak = sum(size for address, size in _live_storages().items() if address not in before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _live_storages() -> dict[int, int]:
    """Sizes of the storages of all tensors, by address."""
    objects = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    tensors = [item for item in objects if item.layout == torch.strided and not isinstance(item, WITHOUT_MEMORY)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def peak_of_process(case: Case, base: Path) -> int:
    """Peak bytes of this process in two steps, beyond those of a process that has trained a tiny model.

    On a GPU, the peak of what torch allocates there.
    """
    with tempfile.TemporaryDirectory() as folder:
        tiny = training_step(replace(TINY, settings=case.settings), write_base(TINY, Path(folder)))
        tiny()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = _resident("VmRSS")
    step = training_step(case, base)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current value
    step()
    step()
    return (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM")) - before


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _pack(case: Case) -> Pack:
    random = np.random.default_rng(0)
    length, answer = case.tokens // 2, case.answers // 2
    examples = [
        TokenizedExample(random.integers(1, case.vocabulary, size=length, dtype=np.int32), length - answer)
        for _ in "ab"
    ]
    pack = (tree_pack if case.train_settings().packing else padded_pack)(examples)
    return {name: tensor.to(DEVICE) for name, tensor in pack.items()}  # type: ignore[return-value,attr-defined]


if __name__ == "__main__":
    print(peak_of_process(Case(**json.loads(sys.argv[1])), Path(sys.argv[2])))
