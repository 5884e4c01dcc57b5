"""Checks, before training, that an adapter fits its base model and can be merged into it; on the `meta` device."""

import difflib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from chatmetrics.components.base_model.config import architecture_of, read_config
from chatmetrics.components.base_model.files import listed
from chatmetrics.components.base_model.llama_cpp import ALWAYS_TIED
from chatmetrics.components.base_model.loading import has_tied_head
from chatmetrics.components.base_model.on_meta import model_on_meta, quiet
from chatmetrics.components.errors import InputError

ADAPTABLE = (nn.Linear, nn.Embedding, Conv1D)


def check_targets(folder: Path, lora: LoraConfig) -> None:
    """Put a new adapter on the model and merge it, without weights: what merge would refuse is refused here.

    Args:
        folder: the base model's folder, which has passed `check_base_model`.
        lora: the adapter's settings; `target_modules` is "all-linear" or a set of names.

    Raises:
        InputError: a target is no module of the model, cannot have an adapter, or could not be served.
    """
    model = model_on_meta(folder)
    targets = lora.target_modules
    if not isinstance(targets, str):
        _check_names(model, sorted(targets or ()))
    is_tied = has_tied_head(model)
    try:
        with torch.device("meta"), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's about tied weights, which merge separates
            adapted = get_peft_model(model, lora)
            outer = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module]
            is_outer = any(hasattr(module, "lora_A") for module in outer)
            adapted.merge_and_unload()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"train.lora_targets: {_given(targets)} cannot be adapted or merged: {text}") from error
    architecture = architecture_of(read_config(folder))
    if is_tied and is_outer and architecture in ALWAYS_TIED:
        raise InputError(
            f"train.lora_targets: {_given(targets)} gives an adapter to the embedding or the head of {architecture}, "
            "which share their weights; llama.cpp has no separate head for it, so the model could not be served. "
            "Leave both out"
        )


def _check_names(model: PreTrainedModel, targets: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    adaptable = sorted({name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, ADAPTABLE)})
    choice = f"the modules of {type(model).__name__} that can have an adapter are {listed(adaptable, 20)}"
    if not targets:
        raise InputError(f"train.lora_targets is empty; write all-linear, or names: {choice}")
    for target in targets:
        found = [module for name, module in modules.items() if name and f".{name}".endswith(f".{target}")]
        if not found:
            near = difflib.get_close_matches(target, adaptable, n=2, cutoff=0.5)
            advice = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(f"train.lora_targets: {target!r} names no module; {advice}{choice[0].upper()}{choice[1:]}")
        if other := next((module for module in found if not isinstance(module, ADAPTABLE)), None):
            raise InputError(
                f"train.lora_targets: {target!r} is a {type(other).__name__}, which cannot have an adapter; {choice}"
            )


def _given(targets: object) -> str:
    return targets if isinstance(targets, str) else ", ".join(sorted(targets))  # type: ignore[call-overload]
