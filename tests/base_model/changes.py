"""What is done to a good base model's folder to break it, or to change something harmless."""

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

UP = "model.layers.1.mlp.up_proj.weight"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 1234\n"
LOGIN = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
INDEX = "model.safetensors.index.json"


def edited(name: str, **changes: object) -> Callable[[Path], object]:
    """Change values of a JSON file; None deletes them."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text("utf-8")) if (folder / name).exists() else {}
        content = {key: value for key, value in {**content, **changes}.items() if value is not None}
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")

    return edit


def written(name: str, content: str | bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def removed(*names: str) -> Callable[[Path], object]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], object]:
    """Save the checkpoint again with other tensors."""

    def save(folder: Path) -> None:
        changed = change(load_file(folder / "model.safetensors"))
        save_file(
            {name: it.contiguous() for name, it in changed.items()}, folder / "model.safetensors", {"format": "pt"}
        )

    return save


def without(*parts: str) -> Callable[[Path], object]:
    return tensors(lambda all: {name: it for name, it in all.items() if not any(part in name for part in parts)})


def prefixed(prefix: str) -> Callable[[Path], object]:
    return tensors(lambda all: {prefix + name: it for name, it in all.items()})


def extended(**more: torch.Tensor) -> Callable[[Path], object]:
    return tensors(lambda all: {**all, **{name.replace("__", "."): it for name, it in more.items()}})


def cut(size: int) -> Callable[[Path], object]:
    """Keep the first bytes of the weights; a negative number: all but the last."""

    def shorten(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])

    return shorten


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the header of the safetensors file, not its data."""

    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        [length] = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return rewrite


def sharded(then: Callable[[Path], object]) -> Callable[[Path], object]:
    """Write the checkpoint in ten files, and change something."""

    def shard(folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="50KB")
        then(folder)

    return shard


def shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[number]


def index_names(name: str, file: str) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_bytes())
        index["weight_map"][name] = file
        (folder / INDEX).write_text(json.dumps(index))

    return rewrite


def forget_tensor(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_bytes())
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))


def only(*files: tuple[str, bytes]) -> Callable[[Path], object]:
    """Replace the weights by other files."""

    def replace(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name, content in files:
            (folder / name).write_bytes(content)

    return replace


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def replaced_by(name: str, content: bytes) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        emptied(folder)
        (folder / name).write_bytes(content)

    return replace


def nested(folder: Path) -> None:
    inside = folder.with_name("inside")
    folder.rename(inside)
    folder.mkdir()
    inside.rename(folder / "snapshot")


def zipped(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "model.safetensors", "w") as archive:
        archive.writestr("data.pkl", "weights")


def dangling(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/0123")


def a_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def adapter_only(folder: Path) -> None:
    emptied(folder)
    written("adapter_config.json", json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}))(folder)
    written("adapter_model.safetensors", b"weights")(folder)


def packed(name: str, dtype: torch.dtype) -> Callable[[Path], object]:
    return tensors(
        lambda all: (
            {key: it for key, it in all.items() if key != UP}
            | {UP.replace(".weight", name): torch.zeros(64, 8, dtype=dtype)}
        )
    )


def added_token(number: int) -> Callable[[Path], object]:
    def add(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        token = {"id": number, "content": "[PAD]", "special": True, "normalized": False}
        content["added_tokens"].append(token | dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
        (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")

    return add


def fewer_rows(folder: Path) -> None:
    tensors(lambda all: {name: it[:390] if it.shape[0] == 400 else it for name, it in all.items()})(folder)
    edited("config.json", vocab_size=390)(folder)


def stacked(names: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], object]:
    return tensors(lambda all: {name: change(it) if names in name else it for name, it in all.items()})
