"""What the names of a checkpoint's tensors tell without building the model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatmetrics.components.base_model.config import text_config
from chatmetrics.components.base_model.files import listed
from chatmetrics.components.base_model.tensors import Tensor
from chatmetrics.components.errors import InputError

# What DDP, torch.compile, PEFT and FSDP put before the names of the model that they wrap.
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.", "model.model.")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")


def check_names(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Check that names do not begin with a wrapper's prefix, and that no layer is missing.

    Raises:
        InputError: they do, or one is.
    """
    if prefix := next((it for it in WRAPPERS if all(name.startswith(it) for name in tensors)), ""):
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
