"""Quantization of a GGUF file with llama.cpp's own kernels, from the `libgguf` wheel.

The rules are those of llama.cpp's src/llama-quant.cpp for dense models (tensor_allows_quantization,
llama_tensor_get_type_impl, tensor_type_fallback). The result is byte-identical to the file that llama-quantize writes.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gguf
import libgguf  # type: ignore[import-untyped]
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from chatmetrics.components.base_model.rounding import FALLBACKS as FALLBACK_NAMES
from chatmetrics.components.console import Progress
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import disk_errors

# Dense architectures with separate attention tensors, for which the rules below are complete.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
# llama.cpp treats a model with this many layers as a 70B model, which has further rules.
LAYERS_OF_70B = 80
FALLBACKS = {Type[name]: Type[other] for name, other in FALLBACK_NAMES.items()}
ELEMENTS_PER_CHUNK = 2**22


@dataclass(frozen=True, slots=True)
class Mix:
    """A mix of tensor types: its number in the file, the type of most tensors, and whether some get more bits."""

    file_type: LlamaFileType
    type: Type
    more_bits: bool = False


MIXES = {
    "Q8_0": Mix(LlamaFileType.MOSTLY_Q8_0, Type.Q8_0),
    "Q6_K": Mix(LlamaFileType.MOSTLY_Q6_K, Type.Q6_K),
    "Q5_K_M": Mix(LlamaFileType.MOSTLY_Q5_K_M, Type.Q5_K, more_bits=True),
    "Q4_K_M": Mix(LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K, more_bits=True),
    "Q5_0": Mix(LlamaFileType.MOSTLY_Q5_0, Type.Q5_0),
    "Q4_1": Mix(LlamaFileType.MOSTLY_Q4_1, Type.Q4_1),
    "Q4_0": Mix(LlamaFileType.MOSTLY_Q4_0, Type.Q4_0),
}


def quantize(source: Path, target: Path, mix: Mix) -> dict[str, str]:
    """Quantize the GGUF file `source`, of type F32, F16 or BF16, to `target` with the types of a mix.

    Returns:
        The tensors whose rows do not fit the type in the mix, with the type that was used instead.

    Raises:
        InputError: the architecture needs rules that only llama-quantize has.
        StorageError: the disk is full.
    """
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    layers = int(reader.fields[f"{architecture}.block_count"].contents())
    if architecture not in ARCHITECTURES or layers >= LAYERS_OF_70B or f"{architecture}.expert_count" in reader.fields:
        raise InputError(
            f"a {architecture} model of {layers} layers can only be quantized by llama-quantize: "
            "install it on the PATH, or name it in LLAMA_QUANTIZE"
        )
    # llama.cpp orders tensors by layer and name.
    tensors = sorted(reader.tensors, key=lambda tensor: (_layer(tensor.name), tensor.name))
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    wanted = [_wanted_type(tensor, mix, layers, tied) for tensor in tensors]
    types = [_fitting_type(type, tensor) for type, tensor in zip(wanted, tensors, strict=True)]
    with disk_errors(target):
        _write(reader, architecture, target, mix, tensors, types)
    return {
        tensor.name: fitting.name.lower()
        for tensor, wish, fitting in zip(tensors, wanted, types, strict=True)
        if wish != fitting
    }


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _wanted_type(tensor: gguf.ReaderTensor, mix: Mix, layers: int, tied: bool) -> Type:
    """The type of a tensor in the mix, regardless of whether its rows fit."""
    name = tensor.name
    is_matrix = int(np.prod(tensor.shape[1:])) > 1
    if not is_matrix or not name.endswith("weight") or "_norm.weight" in name:
        return tensor.tensor_type
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return Type.Q8_0 if mix.type == Type.Q8_0 or not _fits(mix.type, tensor) else Type.Q6_K
    if mix.more_bits and name.endswith(("attn_v.weight", "ffn_down.weight")) and _is_sensitive(_layer(name), layers):
        return Type.Q6_K
    return mix.type


def _is_sensitive(layer: int, layers: int) -> bool:
    """llama.cpp's use_more_bits: the first and last eighth of the layers, and every third layer between them."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting_type(type: Type, tensor: gguf.ReaderTensor) -> Type:
    if _fits(type, tensor):
        return type
    fallback = FALLBACKS.get(type, type)
    return fallback if _fits(fallback, tensor) else Type.F16


def _fits(type: Type, tensor: gguf.ReaderTensor) -> bool:
    return int(tensor.shape[0]) % gguf.GGML_QUANT_SIZES[type][0] == 0


def _write(
    reader: gguf.GGUFReader,
    architecture: str,
    target: Path,
    mix: Mix,
    tensors: Sequence[gguf.ReaderTensor],
    types: Sequence[Type],
) -> None:
    writer = gguf.GGUFWriter(target, architecture)
    _copy_metadata(reader, writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(mix.file_type)
    for tensor, type in zip(tensors, types, strict=True):
        shape = tuple(int(length) for length in reversed(tensor.shape))
        size = gguf.quant_shape_to_byte_shape(shape, type)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), int(np.prod(size)), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(tensor.n_elements for tensor in tensors) // 10**6 + 1
    progress = Progress(f"quantizing {target.name}", total, "M weights")
    done = 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for tensor, type in zip(tensors, types, strict=True):
            writer.write_tensor_data(_converted(tensor, type, pool))
            done += tensor.n_elements
            progress.update(done // 10**6)
    progress.update(total)
    writer.close()


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    replaced = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, field in reader.fields.items():
        # The reader also returns the file's header as fields.
        if name in replaced or name.startswith("GGUF."):
            continue
        item_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], item_type)


def _converted(tensor: gguf.ReaderTensor, type: Type, pool: ThreadPoolExecutor) -> np.ndarray:
    """The bytes of a tensor in another type. Converted in chunks of rows: in fp32 it may not fit into memory."""
    if type == tensor.tensor_type:
        return tensor.data
    rows = max(1, ELEMENTS_PER_CHUNK // int(tensor.shape[0]))

    def convert(begin: int) -> np.ndarray:
        plain = gguf.dequantize(tensor.data[begin : begin + rows], tensor.tensor_type)
        return np.asarray(libgguf.quantize_rows(plain, type))

    return np.concatenate(list(pool.map(convert, range(0, len(tensor.data), rows))))
