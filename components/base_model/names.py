"""What the names of a checkpoint's tensors tell without building the model."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from chatmetrics.components.base_model.config import text_config
from chatmetrics.components.base_model.files import listed
from chatmetrics.components.base_model.tensors import Tensor
from chatmetrics.components.errors import InputError

# What DDP, torch.compile, PEFT and FSDP put before the names of the model that they wrap.
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.", "base_model.")
EXPERT = re.compile(r"\.experts\.(\d+)\.")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")


def check_names(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Check that names do not begin with a wrapper's prefix, and that no layer or expert is missing.

    Raises:
        InputError: they do, or one is.
    """
    if prefix := _prefix(tensors):
        raise InputError(
            f"model {folder}: all names in the checkpoint begin with {prefix!r}, so that no tensor of the model is "
            "found; save the model without what it was wrapped in, or rename the tensors"
        )
    found = {int(match[1]) for name in tensors if (match := LAYER.search(name))}
    layers = text_config(dict(config)).get("num_hidden_layers")
    if found and isinstance(layers, int) and (missing := sorted(set(range(layers)) - found)):
        raise InputError(
            f"model {folder}: the checkpoint lacks layer{'s' if len(missing) > 1 else ''} "
            f"{listed([str(layer) for layer in missing], 5)} of the {layers} layers that config.json names; copy the "
            "model again, or correct config.json"
        )
    _check_experts(folder, tensors)


def _prefix(names: Collection[str]) -> str:
    # transformers itself removes a second `model.`, but llama.cpp's converter does not.
    if any(name.startswith("model.model.") for name in names) and all(name.startswith("model.") for name in names):
        return "model."
    return next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in names)), "")


def _check_experts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Each expert of a layer has the same tensors. transformers stacks them and reports only the stack's shape."""
    numbers: dict[tuple[str, str], dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := EXPERT.search(name):
            numbers.setdefault((name[: match.start(1)], name[match.end(1) :]), {})[int(match[1])] = tensor
    count = max((number for found in numbers.values() for number in found), default=-1) + 1
    if missing := [str(n).join(name) for name, found in numbers.items() for n in range(count) if n not in found]:
        raise InputError(
            f"model {folder}: the checkpoint lacks {listed(missing)}, which the other experts have; copy the model "
            "again"
        )
    for parts, found in numbers.items():
        if other := next((n for n in found if found[n].shape != found[0].shape), 0):
            raise InputError(
                f"model {folder}: {str(other).join(parts)} has the shape {found[other].shape} in the checkpoint, and "
                f"the first expert's {found[0].shape}; copy the model again"
            )
