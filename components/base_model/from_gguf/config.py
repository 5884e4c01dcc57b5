"""The config.json of a GGUF file's model: llama.cpp's conversion/base.py, llama.py and qwen.py, read backwards."""

import math
from typing import Any

import numpy as np

from chatmetrics.components.base_model.from_gguf.gguf_file import GgufFile
from chatmetrics.components.errors import InputError

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Keys below the architecture's name that are understood, or do not change what the model computes. A key that is not
# listed could, so the file is refused.
UNDERSTOOD_KEYS = """
block_count context_length embedding_length feed_forward_length vocab_size attention.head_count attention.head_count_kv
attention.key_length attention.value_length attention.layer_norm_rms_epsilon rope.freq_base rope.dimension_count
rope.scaling.type rope.scaling.factor rope.scaling.original_context_length rope.scaling.finetuned
"""
UNDERSTOOD = frozenset(UNDERSTOOD_KEYS.split())
ROPE_FACTORS = "rope_freqs.weight"
# What Llama 3.1 and later name in their config.json, apart from `factor`. A GGUF file has only the resulting factors.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def architecture(model: GgufFile) -> str:
    """llama.cpp's name of the architecture.

    Raises:
        InputError: it is not supported.
    """
    name = model.value("general.architecture", str)
    if name not in CLASSES:
        raise InputError(
            f"{model.path}: a GGUF file of the architecture {name}; as base model only {' and '.join(CLASSES)} can be "
            "read from GGUF. Name the folder of the original model"
        )
    if unknown := [
        key for key in model.metadata if key.startswith(f"{name}.") and key.partition(".")[2] not in UNDERSTOOD
    ]:
        raise InputError(
            f"{model.path}: its key {unknown[0]} is not supported in a base model; name the folder of the original "
            "model"
        )
    return name


def heads(model: GgufFile) -> tuple[int, int]:
    """Number of attention heads, and of those of keys and values."""
    name = architecture(model)
    count = model.value(f"{name}.attention.head_count", int)
    return count, model.value(f"{name}.attention.head_count_kv", int, count)


def config_of(model: GgufFile, dtype: str) -> dict[str, Any]:
    """The model's config.json, without the special tokens.

    Args:
        model: the GGUF file.
        dtype: torch's name of the type that the weights are written in.

    Raises:
        InputError: the architecture, or something about the model, is not supported.
    """
    name = architecture(model)
    hidden = model.value(f"{name}.embedding_length", int)
    count, key_value_heads = heads(model)
    if "token_embd.weight" not in model.tensors or count < 1 or key_value_heads < 1:
        raise InputError(f"{model.path}: not the weights of a model; download the file again")
    head_width = model.value(f"{name}.attention.key_length", int, hidden // count)
    rope_width = model.value(f"{name}.rope.dimension_count", int, head_width)
    value_width = model.value(f"{name}.attention.value_length", int, head_width)
    if not head_width == rope_width == value_width:
        raise InputError(
            f"{model.path}: its heads have {head_width} values for keys, {value_width} for values and {rope_width} for "
            "positions; only models where they are equal are supported"
        )
    theta = _rounded(model.value(f"{name}.rope.freq_base", float, 10000.0))
    scaling = _rope_scaling(model, name, theta, head_width)
    biases = {
        "attention_bias": "blk.0.attn_q.bias" in model.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in model.tensors,
    }
    return {
        "architectures": [CLASSES[name]],
        "model_type": name,
        "torch_dtype": dtype,
        "vocab_size": int(model.tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": model.value(f"{name}.feed_forward_length", int),
        "num_hidden_layers": model.value(f"{name}.block_count", int),
        "num_attention_heads": count,
        "num_key_value_heads": key_value_heads,
        **({"head_dim": head_width} if head_width * count != hidden else {}),
        "hidden_act": "silu",
        "max_position_embeddings": model.value(f"{name}.context_length", int),
        "rms_norm_eps": _rounded(model.value(f"{name}.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": theta,
        **({"rope_scaling": scaling} if scaling else {}),
        **(biases if name == "llama" else {}),
        "tie_word_embeddings": "output.weight" not in model.tensors,
    }


def _rounded(value: float) -> float:
    """The shortest decimal number that a 32-bit float stands for: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(model: GgufFile, name: str, theta: float, width: int) -> dict[str, Any] | None:
    kind = model.value(f"{name}.rope.scaling.type", str, "none")
    if ROPE_FACTORS in model.tensors:
        return _llama3(model, theta, width)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise InputError(f"{model.path}: its scaling of positions ({kind}) is not supported; name the original model")
    scaling: dict[str, Any] = {
        "rope_type": kind,
        "factor": _rounded(model.value(f"{name}.rope.scaling.factor", float)),
    }
    if kind == "yarn":
        length = model.value(f"{name}.rope.scaling.original_context_length", int)
        scaling["original_max_position_embeddings"] = length
    return scaling


def _llama3(model: GgufFile, theta: float, width: int) -> dict[str, Any]:
    """Llama 3's settings, if they give the factors of the file."""
    factors = np.asarray(model.tensors[ROPE_FACTORS].data, dtype=np.float64).ravel()
    scaling = {"rope_type": "llama3", "factor": _rounded(factors.max(initial=1.0)), **LLAMA3}
    expected = [_llama3_factor(theta ** (-place / width), scaling) for place in range(0, width, 2)]
    if len(factors) != len(expected) or not np.allclose(factors, expected, rtol=1e-4):
        raise InputError(
            f"{model.path}: its scaling of positions ({ROPE_FACTORS}) is not Llama 3's, so it is not supported; "
            "name the folder of the original model"
        )
    return scaling


def _llama3_factor(frequency: float, scaling: dict[str, Any]) -> float:
    """The factor of one frequency; llama.cpp's conversion/llama.py, generate_extra_tensors."""
    length, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = length * frequency / (2 * math.pi)
    if turns > high:
        return 1.0
    if turns < low:
        return float(factor)
    smooth = (turns - low) / (high - low)
    return float(1 / ((1 - smooth) / factor + smooth))
