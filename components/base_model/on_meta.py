"""A checkpoint compared, on the `meta` device, with the model that transformers builds from its config.

No weights are read. Importing this module imports torch and transformers.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from chatmetrics.components import console
from chatmetrics.components.base_model.config import architecture_of
from chatmetrics.components.base_model.files import listed
from chatmetrics.components.base_model.names import LAYER
from chatmetrics.components.base_model.tensors import Tensor
from chatmetrics.components.base_model.tokenizer import no_eos
from chatmetrics.components.errors import InputError

# What configs and models of transformers raise when a value of config.json is wrong.
WRONG_VALUE: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
)
WRONG_VALUE += (TypeError, ValueError, StrictDataclassError)
# What older versions of transformers saved and newer ones compute; it does not report them as unexpected.
BUFFER = re.compile(r"(rotary_emb\.inv_freq|position_ids|\.masked_bias|\.attn\.bias)$")
# safetensors' types of weights in torch; the type of a tensor on `meta` does not matter otherwise.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def model_on_meta(folder: Path) -> PreTrainedModel:
    """Build a folder's model without its weights.

    Raises:
        InputError: the installed transformers does not know the model, or config.json is wrong.
    """
    config = _config(folder)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise InputError(
            f"{folder / 'config.json'}: a model of type {config.model_type} does not write text; name a model for text "
            "generation (CausalLM)"
        )
    try:
        with torch.device("meta"), quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except WRONG_VALUE as error:
        raise _wrong_config(folder, error) from error
    return model


def check_weights(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of the checkpoint with the model, exactly as transformers will load it.

    Raises:
        InputError: the model is not known, or a tensor is missing, has another shape or belongs to no module.
    """
    model = model_on_meta(folder)
    _check_architecture(folder, config, model)
    state = {
        name: torch.empty(it.shape, dtype=DTYPES.get(it.dtype, torch.float32), device="meta")
        for name, it in tensors.items()
    }
    try:
        with quiet():
            # With a state dict on `meta` transformers renames, fuses and ties as with the files, and reports the rest.
            _, found = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=state,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except WRONG_VALUE as error:
        raise InputError(
            f"model {folder}: transformers cannot load its tensors into {type(model).__name__} "
            f"({_first_line(error)}); copy the model again"
        ) from error
    check_loaded(folder, model, found)
    buffers = {name for name in tensors if BUFFER.search(name)} - model.state_dict().keys()
    if extra := sorted(buffers.union(found["unexpected_keys"])):
        console.note(f"{folder}: {len(extra)} tensors belong to no part of the model and are ignored: {listed(extra)}")


def check_loaded(folder: Path, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Refuse a model whose weights are not all from its checkpoint.

    Args:
        folder: the model's folder.
        model: the model.
        found: what `from_pretrained` returns with `output_loading_info`.

    Raises:
        InputError: a tensor is missing, has another shape, or is a layer's and does not belong to the model.
    """
    name = type(model).__name__
    missing, unexpected = sorted(found["missing_keys"], key=_natural), sorted(found["unexpected_keys"], key=_natural)
    total = len(model.state_dict())
    if prefix := _prefix(missing, unexpected):
        raise InputError(
            f"model {folder}: {len(unexpected)} names in the checkpoint begin with {prefix!r}, so that {len(missing)} "
            f"of the {total} tensors of {name} are not found; save the model without what it was wrapped in, or rename "
            "the tensors"
        )
    if missing:
        raise InputError(
            f"model {folder}: the checkpoint lacks {_in_words(missing, model)}, {len(missing)} of the {total} tensors "
            f"of {name}; transformers would fill them with random numbers. Copy the model again, or correct config.json"
        )
    if mismatched := sorted(found["mismatched_keys"], key=lambda each: _natural(each[0])):
        tensor, is_shape, expected = mismatched[0]
        more = f" (and {len(mismatched) - 1} more tensors)" if len(mismatched) > 1 else ""
        raise InputError(
            f"model {folder}: {tensor} has the shape {tuple(is_shape)} in the checkpoint, and {tuple(expected)} in the "
            f"{name} of config.json{more}; use the config.json that belongs to the weights"
        )
    weights = [name for name in unexpected if LAYER.search(name) and name.endswith((".weight", ".bias"))]
    if weights := [name for name in weights if not name.endswith((".attn.bias", ".masked_bias", ".attention.bias"))]:
        raise InputError(
            f"model {folder}: the checkpoint has {_in_words(weights, model)}, for which the {name} of config.json has "
            "no place; use the config.json that belongs to the weights"
        )


def check_tokenizer_class(folder: Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Check the tokenizer that transformers makes of the files.

    Args:
        folder: the model's folder.
        config: its config.json.
        ids: the tokens of tokenizer.json. The tokenizer's class may add others, such as a pad token, which training
            never uses and convert leaves out; but an EOS token that is not among these is unknown to the model.

    Raises:
        InputError: transformers cannot read it, or there is no EOS token.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises no other class
        raise InputError(
            f"model {folder}: transformers cannot read its tokenizer ({_first_line(error)}); copy the model again"
        ) from error
    if tokenizer.eos_token not in ids:
        raise no_eos(folder, config, ids)


def _config(folder: Path) -> PretrainedConfig:
    path = folder / "config.json"
    try:
        with quiet():
            kind, _ = PretrainedConfig.get_config_dict(folder)
            if kind.get("model_type") not in CONFIG_MAPPING:
                raise InputError(f"{path}: {_unknown(kind)}")
            # A type that transformers knows is built with its own code, whatever `auto_map` names.
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except WRONG_VALUE as error:
        raise _wrong_config(folder, error) from error


def _unknown(config: Mapping[str, Any]) -> str:
    version = f"transformers {transformers.__version__}"
    if config.get("auto_map"):
        return (
            f"a model of type {config.get('model_type')!r} needs code from its own files (auto_map), which is never "
            f"run, and {version} does not know it; name a model that transformers supports"
        )
    return f"{version} does not know models of type {config.get('model_type')!r}; name a model that it supports"


def _check_architecture(folder: Path, config: Mapping[str, Any], model: PreTrainedModel) -> None:
    """transformers goes by model_type, llama.cpp's converter by architectures: they must mean the same."""
    architecture = architecture_of(dict(config))
    named = getattr(getattr(transformers, architecture, None), "config_class", None)
    expected = getattr(named, "model_type", "")
    own = {model.config.model_type, model.config.get_text_config().model_type}
    if expected and expected not in own:
        raise InputError(
            f"{folder / 'config.json'}: its architecture {architecture} is not of its model_type "
            f"{model.config.model_type!r} but of {expected!r}; training and conversion would take it for "
            "different models"
        )


def _in_words(names: Collection[str], model: PreTrainedModel) -> str:
    """Names of tensors; those of whole layers by the numbers of the layers."""
    by_layer: dict[str, set[str]] = {}
    for name in names:
        by_layer.setdefault(_layer(name), set()).add(name)
    own: dict[str, set[str]] = {}
    for name in model.state_dict():
        own.setdefault(_layer(name), set()).add(name)
    whole = [layer for layer, found in by_layer.items() if layer and found >= own.get(layer, set())]
    rest = [name for name in names if _layer(name) not in whole]
    layers = [f"layer{'s' if len(whole) > 1 else ''} {listed(whole, 5)}"] if whole else []
    return " and ".join([*layers, *([listed(rest)] if rest else [])])


def _layer(name: str) -> str:
    found = LAYER.search(name)
    return found[1] if found else ""


def _prefix(missing: list[str], unexpected: list[str]) -> str:
    """What all unexpected names begin with before a name that is missing; "" if they do not."""
    if not unexpected or not missing:
        return ""
    wanted = set(missing)
    parts = unexpected[0].split(".")
    for length in range(1, len(parts)):
        prefix = ".".join(parts[:length]) + "."
        stripped = {name.removeprefix(prefix) for name in unexpected}
        if all(name.startswith(prefix) for name in unexpected) and len(stripped & wanted) * 2 > len(wanted):
            return prefix
    return ""


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _wrong_config(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"{folder / 'config.json'}: no model can be built from it ({_first_line(error)}); copy the model's own "
        "config.json"
    )


def _first_line(error: Exception) -> str:
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:3])
    return text[:200] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own report and progress bars: what matters in it is an error or a note of ours."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
