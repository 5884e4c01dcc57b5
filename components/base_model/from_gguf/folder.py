"""The Hugging Face folder of a GGUF file, made once and kept in the cache under the file's sha256."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.base_model.from_gguf.config import config_of
from chatmetrics.components.base_model.from_gguf.gguf_file import read_gguf
from chatmetrics.components.base_model.from_gguf.tokenizer import GgufTokenizer
from chatmetrics.components.base_model.from_gguf.weights import precision, write_weights
from chatmetrics.components.base_model.rounding import SOURCE
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.cache import cache_folder
from chatmetrics.components.storage.files import disk_errors
from chatmetrics.components.storage.folder import atomic_folder

FORMAT = 1  # of the folder; a higher number makes it again


def gguf_folder(gguf: Path, sha256: str) -> Path:
    """The folder of a Hugging Face model with the dequantized weights and llama.cpp's tokenizer.

    Args:
        gguf: the file; it is not read if the folder exists.
        sha256: of the file.

    Raises:
        InputError: the file is damaged, or not of a kind that is supported.
        StorageError: the disk is full or not writable.
    """
    folder = cache_folder("gguf") / f"{sha256}-{FORMAT}"
    with _locked(folder):
        if not folder.is_dir():
            with atomic_folder(folder) as unfinished:
                _write(gguf, sha256, unfinished)
    return folder


@cache
def note_rounding(folder: Path, reference: str) -> None:
    """Print a note, once, if the weights in a folder of `gguf_folder` had been quantized before."""
    source = json.loads((folder / SOURCE).read_bytes())
    if bits := source["bits"]:
        console.note(
            f"base model {reference}: its weights had been rounded to {bits} bits ({source['quantization']}) before; "
            "the original model, if it is available, is a better base"
        )


def _write(gguf: Path, sha256: str, folder: Path) -> None:
    model = read_gguf(gguf)
    chosen = precision(model)
    config = config_of(model, chosen.dtype)
    tokenizer = GgufTokenizer(model)
    if max(tokenizer.tokens) >= config["vocab_size"]:
        raise InputError(f"{gguf}: it has more tokens than rows in its embedding; download the file again")
    ends = tokenizer.end_ids()
    ids: dict[str, Any] = {
        name.replace("token", "token_id"): number for name, number in tokenizer.ids.items() if name != "unk_token"
    }
    generation = {**ids, "eos_token_id": ends[0] if len(ends) == 1 else ends}
    source = {"sha256": sha256, "quantization": chosen.rounded_to, "bits": chosen.bits, "format": FORMAT}
    files = {
        "config.json": {**config, **ids},
        "generation_config.json": generation,
        **tokenizer.files(),
        SOURCE: source,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_weights(model, chosen.type, folder / "model.safetensors")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process make the folder while others wait for it."""
    lock = folder.with_name(f".{folder.name}.lock")
    with disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
