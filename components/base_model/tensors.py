"""The tensors of a model's checkpoint, from the headers of its safetensors files; no data is read."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatmetrics.components.base_model.files import check_kind, listed, present, read_object
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import disk_errors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # the safetensors library refuses longer ones
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "BOOL": 8, "C64": 64}
BITS |= {"U64": 64, "U32": 32, "U16": 16, "U8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8}
BITS |= {"F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.npz", "*.nemo")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header of its file describes it: the file, safetensors' name of the type, and the shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, in the files that transformers and llama.cpp's converter read.

    Raises:
        InputError: there are no weights in safetensors, a file is missing, truncated or something else, or the index
            does not match the files.
        StorageError: a file cannot be read.
    """
    index = folder / INDEX
    weight_map = _weight_map(index) if present(index) else {}
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder, weight_map):
        for name, tensor in _header(path).items():
            if name in tensors:
                raise InputError(f"{path}: tensor {name} is in {tensors[name].file.name} too; copy the model again")
            tensors[name] = tensor
    if weight_map:
        _check_index(index, weight_map, tensors)
    if not tensors:
        raise InputError(f"model {folder}: its safetensors files contain no tensors; copy the model again")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """The name of each tensor's file."""
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(_is_file_name(file) for file in found.values()):
        raise InputError(f"{index}: it has no weight_map from tensors to file names; copy the model again")
    return found


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors") and Path(value).name == value


def _weight_files(folder: Path, weight_map: dict[str, str]) -> list[Path]:
    model_files = sorted(path for path in folder.glob("model*.safetensors"))
    single = folder / SINGLE
    if weight_map:
        names = sorted(set(weight_map.values()))
        if missing := [name for name in names if not present(folder / name)]:
            raise InputError(
                f"model {folder}: {listed(missing)} of the {len(names)} files that {INDEX} names "
                f"{'are' if len(missing) > 1 else 'is'} missing; copy or download the model again"
            )
        if present(single) and SINGLE not in names:
            raise InputError(
                f"model {folder}: both {SINGLE} and {INDEX} with other files; programs differ in which they read: "
                "delete one"
            )
        return [folder / name for name in names]
    if not present(single):
        raise InputError(f"model {folder}: {_without_weights(folder, model_files)}")
    if others := [path.name for path in model_files if path != single]:
        raise InputError(
            f"model {folder}: {listed(others)} next to {SINGLE}, without {INDEX}; programs differ in which they read: "
            "keep one of them"
        )
    return [single]


def _without_weights(folder: Path, shards: list[Path]) -> str:
    """What a folder has instead of weights, and what to do."""
    if any("-of-" in path.name for path in shards):
        return f"{INDEX} is missing, which names the files of the tensors; copy or download the model again"
    if found := sorted(path.name for path in folder.glob("*.safetensors")):
        return f"its weights are in {listed(found)}, not in {SINGLE}; save the model with save_pretrained"
    if found := sorted(path.name for path in folder.glob("*.gguf")):
        return f"its only weights are GGUF ({listed(found)}); name that file, or the folder of the original model"
    if found := sorted(path.name for pattern in OTHER_FORMATS for path in folder.glob(pattern)):
        return f"its weights are in {listed(found)}; save them as safetensors, with save_pretrained"
    return "it contains no *.safetensors, and weights in other formats are not downloaded; copy the model again"


def _header(path: Path) -> dict[str, Tensor]:
    """Read a file's header and compare it with the file's size. Format: huggingface/safetensors, README, Format."""
    check_kind(path)
    with disk_errors(path), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise InputError(f"{path}: not a safetensors file; copy or download the model again")
        content = file.read(length)
    if 8 + length > size:
        raise InputError(_truncated(path, size, 8 + length))
    try:
        tensors = {name: entry for name, entry in json.loads(content).items() if name != "__metadata__"}
        end = _end_of_data(tensors)
        found = {name: Tensor(path, entry["dtype"], tuple(entry["shape"])) for name, entry in tensors.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a safetensors file, or damaged; copy or download the model again") from error
    if 8 + length + end > size:
        raise InputError(_truncated(path, size, 8 + length + end))
    if 8 + length + end < size:
        raise InputError(f"{path}: longer than its header says, so it is damaged; copy or download the model again")
    return found


def _end_of_data(tensors: dict[str, Any]) -> int:
    """Bytes of all tensors together, which must follow each other without gaps.

    Raises:
        ValueError: they do not, or one has another size than its type and shape say.
    """
    end = 0
    for begin, stop in sorted(tuple(entry["data_offsets"]) for entry in tensors.values()):
        if begin != end or stop < begin:
            raise ValueError("a gap between tensors")
        end = stop
    for entry in tensors.values():
        begin, stop = entry["data_offsets"]
        if min(entry["shape"], default=0) < 0 or (stop - begin) * 8 != math.prod(entry["shape"]) * BITS[entry["dtype"]]:
            raise ValueError("a tensor of another size than its shape")
    return end


def _truncated(path: Path, size: int, expected: int) -> str:
    return f"{path} is truncated: {size:,} of {expected:,} bytes; copy or download the model again"


def _check_index(index: Path, weight_map: dict[str, str], tensors: dict[str, Tensor]) -> None:
    absent = [name for name, file in weight_map.items() if name not in tensors or tensors[name].file.name != file]
    if absent:
        raise InputError(
            f"{index}: it names {len(absent)} tensors that their files do not have: {listed(absent)}; copy the model "
            "again"
        )
    if unnamed := [name for name in tensors if name not in weight_map]:
        raise InputError(
            f"{index}: it does not name {len(unnamed)} tensors of the files: {listed(unnamed)}; copy the model again"
        )
