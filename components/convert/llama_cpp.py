"""Runs llama.cpp's converter, extended to accept custom vocabularies with a known pre-tokenizer.

Usage: python -m chatmetrics.components.convert.llama_cpp CONVERTER ARGUMENTS...

The converter recognizes a pre-tokenizer by a hash of the token ids of one text. It therefore refuses a custom
vocabulary, even if it splits text exactly as a known one. Here the sections of tokenizer.json that decide how text is
split are compared instead.

It also refuses a tokenizer with a token beyond the embedding. transformers adds such a token where a tokenizer's class
has a default, for example for padding, that tokenizer.json does not have. The model does not know it: it is left out.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

# The pattern of Qwen2's and DeepSeek-R1-Distill-Qwen's tokenizer.json; llama.cpp treats both names alike
# (LLAMA_VOCAB_PRE_TYPE_QWEN2 in src/llama-vocab.cpp).
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
# Results of `splitting`, each with llama.cpp's name of the pre-tokenizer.
KNOWN = [
    (
        {
            "model": "BPE",
            "byte_fallback": False,
            "ignore_merges": False,
            "normalizers": ["NFC"],
            "pre_tokenizers": [{**SPLIT, "pattern": {"Regex": QWEN2_PATTERN}}, BYTE_LEVEL],
            "decoder": "ByteLevel",
        },
        "deepseek-r1-qwen",
    ),
]
RELEVANT = ("type", "pattern", "behavior", "invert", "add_prefix_space", "use_regex")


def splitting(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The sections of tokenizer.json that decide how text is split, apart from vocabulary and merges."""
    model = tokenizer["model"]
    return {
        "model": model["type"],
        "byte_fallback": bool(model.get("byte_fallback")),
        "ignore_merges": bool(model.get("ignore_merges")),
        "normalizers": [part["type"] for part in _sequence(tokenizer["normalizer"], "normalizers")],
        # ByteLevel's `trim_offsets` is left out: it changes offsets, not tokens.
        "pre_tokenizers": [
            {key: part[key] for key in RELEVANT if key in part}
            for part in _sequence(tokenizer["pre_tokenizer"], "pretokenizers")
        ],
        "decoder": (tokenizer["decoder"] or {}).get("type"),
    }


def _sequence(section: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if section is None:
        return []
    return list(section[key]) if section["type"] == "Sequence" else [section]


def known_name(model: Path) -> str:
    """llama.cpp's name of the pre-tokenizer that splits text like the tokenizer of `model`; "" if there is none."""
    path = model / "tokenizer.json"
    if not path.is_file():
        return ""
    wanted = splitting(json.loads(path.read_text("utf-8")))
    return next((name for sections, name in KNOWN if sections == wanted), "")


def _leave_out_defaults() -> None:
    """Make transformers load tokenizers without special tokens that are not in tokenizer.json."""
    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained

    def from_pretrained(folder: Any, *arguments: Any, **options: Any) -> Any:
        tokenizer = load(folder, *arguments, **options)
        path = Path(folder) / "tokenizer.json"
        known = Tokenizer.from_file(str(path)).get_vocab() if path.is_file() else {}
        special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        foreign = {name: None for name, token in special.items() if token not in known}
        return load(folder, *arguments, **{**options, **foreign}) if known and foreign else tokenizer

    AutoTokenizer.from_pretrained = from_pretrained


def _extend(converter: Path) -> None:
    """Make the converter's base class call `known_name` before it refuses a tokenizer."""
    sys.path[:0] = [str(converter.parent), str(converter.parent / "gguf-py")]
    from conversion.base import TextModel  # type: ignore[import-not-found]  # next to the converter

    by_hash = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_hash(self, tokenizer))
        except NotImplementedError:
            name = known_name(self.dir_model)
        if not name:
            sys.exit(
                f"error: {self.dir_model / 'tokenizer.json'} splits text in a way that llama.cpp does not support; "
                "use a base model that llama.cpp supports"
            )
        # On standard output like the converter's own lines; `convert` passes notes on.
        print(f"note: the tokenizer's hash is unknown, but it splits text exactly like {name}", flush=True)
        return name

    TextModel.get_vocab_base_pre = get_vocab_base_pre


if __name__ == "__main__":
    program = Path(sys.argv[1])
    _extend(program)
    _leave_out_defaults()
    sys.argv = sys.argv[1:]
    runpy.run_path(str(program), run_name="__main__")
