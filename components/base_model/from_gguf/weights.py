"""Dequantizes the weights of a GGUF file to safetensors, one tensor after the other, so that memory stays small."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from chatmetrics.components.base_model.from_gguf.config import ROPE_FACTORS, architecture, heads
from chatmetrics.components.base_model.from_gguf.gguf_file import GgufFile
from chatmetrics.components.console import Progress
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import disk_errors

# llama.cpp's names of tensors and transformers', the same for Llama and Qwen2.
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
UNQUANTIZED = {Type.F32: ("F32", "float32"), Type.F16: ("F16", "float16"), Type.BF16: ("BF16", "bfloat16")}
ELEMENTS_PER_CHUNK = 2**24


@dataclass(frozen=True, slots=True)
class Precision:
    """The type that weights are written in, and the type that they had been rounded to before.

    Attributes:
        type: one of UNQUANTIZED.
        rounded_to: llama.cpp's name of the quantization, such as Q4_1; "" if there was none.
    """

    type: Type
    rounded_to: str

    @property
    def dtype(self) -> str:
        """torch's name of the type."""
        return UNQUANTIZED[self.type][1]

    @property
    def bits(self) -> int:
        """The bits that each weight had been rounded to; 0 if it was not quantized."""
        return int(found[0]) if (found := re.search(r"\d+", self.rounded_to)) else 0


def precision(model: GgufFile) -> Precision:
    """Choose the type to write. An unquantized file keeps its type.

    A quantized one becomes bf16, in which models are published: on normally distributed weights, the error of rounding
    to it is a fiftieth of the error that Q4_0 has made, and a third of Q8_0's. The folder is half as large as in fp32.
    """
    counts: Counter[Type] = Counter()
    for tensor in model.tensors.values():
        if len(tensor.shape) > 1:
            counts[tensor.tensor_type] += int(tensor.n_elements)
    if quantized := {type: count for type, count in counts.items() if type not in UNQUANTIZED}:
        return Precision(Type.BF16, max(quantized, key=lambda type: quantized[type]).name)
    return Precision(next((type for type in UNQUANTIZED if type in counts), Type.F32), "")


def write_weights(model: GgufFile, type: Type, path: Path) -> None:
    """Write the weights with transformers' names. Format: huggingface/safetensors, README, Format.

    The library's own writer would need all weights in memory at once.

    Raises:
        InputError: a tensor is unknown, or of a type that cannot be dequantized.
        StorageError: the disk is full.
    """
    names = {tensor.name: _name(model, tensor.name) for tensor in model.tensors.values() if tensor.name != ROPE_FACTORS}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for own, name in names.items():
        tensor = model.tensors[own]
        begin, end = end, end + int(tensor.n_elements) * (4 if type == Type.F32 else 2)
        shape = [int(length) for length in reversed(tensor.shape)]
        header[name] = {"dtype": UNQUANTIZED[type][0], "shape": shape, "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    total = sum(int(model.tensors[own].n_elements) for own in names) // 10**6 + 1
    progress = Progress(f"dequantizing {model.path.name}", total, "M weights")
    done = 0
    with disk_errors(path), path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for own in names:
            for chunk in _converted(model, own, type):
                file.write(chunk.data)
            done += int(model.tensors[own].n_elements)
            progress.update(done // 10**6)
        progress.update(total)


def _name(model: GgufFile, own: str) -> str:
    found = NAME.fullmatch(own)
    layer, part, kind = found.groups() if found else (None, "", "")
    table = OUTER if layer is None else INNER
    if part not in table:
        raise InputError(
            f"{model.path}: its tensor {own} has no place in a {architecture(model)} model; name the folder of the "
            "original model"
        )
    return f"{table[part]}.{kind}" if layer is None else f"model.layers.{layer}.{table[part]}.{kind}"


def _converted(model: GgufFile, name: str, type: Type) -> Iterator[np.ndarray]:
    """The values of a tensor in another type, in chunks of rows."""
    tensor = model.tensors[name]
    data = tensor.data[_rows_in_order(model, name, len(tensor.data))]
    step = max(1, ELEMENTS_PER_CHUNK // int(tensor.shape[0])) if data.ndim > 1 else len(data)
    for start in range(0, len(data), step):
        values = _dequantized(model, tensor, data[start : start + step])
        yield np.ascontiguousarray(gguf.quants.quantize(values, type))


def _dequantized(model: GgufFile, tensor: gguf.ReaderTensor, rows: np.ndarray) -> np.ndarray:
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            values = gguf.quants.dequantize(rows, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise InputError(
            f"{model.path}: its tensor {tensor.name} is of the type {tensor.tensor_type.name}, which cannot be "
            "dequantized; name the folder of the original model"
        ) from error
    if not np.isfinite(values).all():
        raise InputError(
            f"{model.path}: its tensor {tensor.name} has values that are not finite; download the file again"
        )
    return values


def _rows_in_order(model: GgufFile, name: str, rows: int) -> np.ndarray | slice:
    """The rows of queries and keys in transformers' order.

    In each head of a Llama, llama.cpp's converter puts the two values of each rotation next to each other, where
    transformers has all first values before all second ones (`permute` in llama.cpp's conversion/llama.py).
    """
    part = name.split(".")[-2]
    if architecture(model) != "llama" or part not in ("attn_q", "attn_k"):
        return slice(None)
    count = heads(model)[0 if part == "attn_q" else 1]
    if rows % (2 * count):
        raise InputError(f"{model.path}: its tensor {name} has {rows} rows for {count} heads; download the file again")
    return np.arange(rows).reshape(count, rows // count // 2, 2).swapaxes(1, 2).ravel()
