"""Checks of a model's config.json: what kind of model it is, and whether its weights can be trained and converted."""

from pathlib import Path
from typing import Any

from chatmetrics.components.base_model.files import optional_object, present, read_object
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import disk_errors

# What training with bitsandbytes, GPTQ, AWQ, compressed-tensors, MLX and others writes into config.json or next to it.
QUANTIZATION_KEYS = ("quantization_config", "quantization", "compression_config")
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "quant_strategy.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Ends of the names of architectures that do not write text.
OTHER_TASKS = ("MaskedLM", "Classification", "QuestionAnswering", "RewardModel", "MultipleChoice", "PreTraining")
PACKED = (
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".SCB",
    ".absmax",
    ".quant_map",
    ".scales",
    ".weight_scale",
)


def check_folder(folder: Path) -> None:
    """Check that a path is a folder with a model in it, and not an adapter.

    Raises:
        InputError: it is not; says what it is.
    """
    if folder.is_file():
        raise InputError(f"model {folder}: a file; name the folder of a Hugging Face model, with safetensors")
    if not folder.is_dir():
        raise InputError(f"model {folder}: no such folder; check the path")
    with disk_errors(folder):
        is_empty = not any(folder.iterdir())
    if is_empty:
        raise InputError(f"model {folder}: an empty folder; copy or download the model again")
    if adapter := next((name for name in ADAPTER_FILES if present(folder / name)), ""):
        base = optional_object(folder / "adapter_config.json").get("base_model_name_or_path")
        if any(folder.glob("model*.safetensors")):
            advice = "transformers would load it on top of the weights: delete it, or merge it first"
        else:
            advice = f"name its base model{f' {base}' if base else ''} instead"
        raise InputError(f"model {folder}: it contains an adapter ({adapter}); {advice}")
    if not present(folder / "config.json"):
        inside = next((path for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/config.json")), None)
        advice = f"did you mean {inside.parent}?" if inside else "name the folder of a Hugging Face model"
        if not inside and (gguf := next(folder.glob("*.gguf"), None)):
            advice = f"{gguf.name} is a GGUF file; name the file itself, or the folder of the original model"
        raise InputError(f"{folder / 'config.json'}: no such file; {advice}")


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json and check everything about it that needs no other program.

    Raises:
        InputError: it is not a language model's, or the weights are quantized.
        StorageError: it cannot be read.
    """
    path = folder / "config.json"
    config = read_object(path)
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise InputError(f"{path}: it has no model_type; copy the model's own config.json")
    _check_unquantized(folder, config)
    architecture = architecture_of(config)
    if not architecture:
        raise InputError(
            f"{path}: it has no list of architectures, which llama.cpp's converter reads; add the model's class, for "
            'example "architectures": ["Qwen2ForCausalLM"]'
        )
    if architecture.endswith(OTHER_TASKS):
        raise InputError(f"{path}: {architecture} does not write text; name a model for text generation (CausalLM)")
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model; some models have another for images."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def architecture_of(config: dict[str, Any]) -> str:
    """The class of the model, as llama.cpp's converter chooses it; "" if the config names none."""
    for part in (text_config(config), config):
        names = part.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
    return ""


def _check_unquantized(folder: Path, config: dict[str, Any]) -> None:
    parts = {"config.json": config, "config.json's text_config": text_config(config)}
    for place, part in parts.items():
        for key in QUANTIZATION_KEYS:
            if part.get(key):
                raise quantized(folder, f"{key} in {place}{_method(part[key])}")
    for name in QUANTIZATION_FILES:
        if present(folder / name):
            raise quantized(folder, f"the file {name}")


def quantized(folder: Path, evidence: str) -> InputError:
    """The error for weights that are already quantized."""
    return InputError(
        f"model {folder}: its weights are already quantized ({evidence}); name the original model in bf16, fp16 or "
        "fp32 (train.quantize_base quantizes it while it is trained)"
    )


def _method(settings: Any) -> str:
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return f": {method}" if isinstance(method, str) else ""
