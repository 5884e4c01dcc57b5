"""The check of a base model, which every step that uses one runs before it computes or writes anything."""

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.base_model.config import PACKED, architecture_of, check_folder, quantized, read_config
from chatmetrics.components.base_model.files import check_kind, optional_object, present
from chatmetrics.components.base_model.llama_cpp import known_architectures
from chatmetrics.components.base_model.names import check_names
from chatmetrics.components.base_model.tensors import Tensor, read_tensors
from chatmetrics.components.base_model.tokenizer import check_tokenizer
from chatmetrics.components.errors import InputError

WEIGHT_TYPES = ("BF16", "F16", "F32")  # of which llama.cpp's converter keeps the precision
OPTIONAL_OBJECTS = ("generation_config.json", "special_tokens_map.json", "added_tokens.json")
OPTIONAL_TEXTS = ("chat_template.jinja", "merges.txt", "vocab.json")  # merge copies them, and convert reads them


@dataclass(frozen=True)
class CheckedModel:
    """A model that passed the check.

    Attributes:
        folder: its folder.
        config: its config.json.
        tensors: its tensors by name.
        tokens: number of tokens of its tokenizer.
        compared: whether names and shapes were compared with the model, which needs torch and transformers.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tokens: int
    compared: bool

    def __str__(self) -> str:
        """One line about the model."""
        files = len({tensor.file for tensor in self.tensors.values()})
        types = Counter(tensor.dtype for tensor in self.tensors.values())
        compared = "names and shapes as its config.json says" if self.compared else "names and shapes not compared"
        return (
            f"{architecture_of(self.config)}, {len(self.tensors)} tensors ({', '.join(types)}) in {files} "
            f"file{'s' if files > 1 else ''}, {compared}; {self.tokens} tokens; llama.cpp can convert it"
        )


def check_base_model(folder: Path) -> CheckedModel:
    """Check that a model's folder can be trained, merged, converted and served. Nothing is computed; seconds at most.

    Where torch and transformers are not installed, names and shapes of the tensors are not compared with the model.

    Raises:
        InputError: it cannot; one line that says which file is wrong, how, and what to do.
        StorageError: a file cannot be read.
    """
    check_folder(folder)
    config = read_config(folder)
    for name in OPTIONAL_OBJECTS:
        optional_object(folder / name)
    for name in OPTIONAL_TEXTS:
        if present(folder / name):
            check_kind(folder / name)
    tensors = read_tensors(folder)
    _check_types(folder, tensors)
    _check_convertible(folder, config)
    check_names(folder, config, tensors)
    ids = check_tokenizer(folder, config, tensors)
    can_compare = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if can_compare:
        from chatmetrics.components.base_model.on_meta import check_tokenizer_class, check_weights

        check_weights(folder, config, tensors)
        check_tokenizer_class(folder, config, ids)
    else:
        console.note(f"{folder}: names and shapes of its tensors are not compared, because torch is not installed")
    return CheckedModel(folder, config, tensors, len(ids), can_compare)


def _check_types(folder: Path, tensors: dict[str, Tensor]) -> None:
    if packed := next((name for name in tensors if name.endswith(PACKED) or ".quant_state." in name), ""):
        raise quantized(folder, f"tensor {packed}")
    weights = {name: tensor.dtype for name, tensor in tensors.items() if name.endswith(("weight", "proj"))}
    if other := next((name for name, dtype in weights.items() if dtype not in WEIGHT_TYPES), ""):
        if weights[other] in ("F64", "C64"):
            raise InputError(
                f"model {folder}: weights of type {weights[other]} ({other}); save them as BF16, F16 or F32"
            )
        raise quantized(folder, f"tensor {other} of type {weights[other]}")


def _check_convertible(folder: Path, config: dict[str, Any]) -> None:
    architecture = architecture_of(config)
    if architecture not in known_architectures():
        raise InputError(
            f"{folder / 'config.json'}: llama.cpp's converter does not support the architecture {architecture}, so a "
            "model trained from it could not be served; name a supported model, or a newer converter in "
            "LLAMA_CPP_CONVERT"
        )
