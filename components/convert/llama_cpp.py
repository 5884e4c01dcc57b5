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
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chatmetrics.components.base_model.from_gguf.pre_tokenizers import PRE_TOKENIZERS, WHOLE_WORDS, pre_tokenizers

# The pattern of Qwen2's and DeepSeek-R1-Distill-Qwen's tokenizer.json; llama.cpp treats both names alike
# (LLAMA_VOCAB_PRE_TYPE_QWEN2 in src/llama-vocab.cpp).
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
# As DeepSeek-R1-Distill-Qwen's own tokenizer.json has it. llama.cpp does not normalize.
PUBLISHED = {
    "model": "BPE",
    "byte_fallback": False,
    "ignore_merges": False,
    "normalizers": ["NFC"],
    "pre_tokenizers": [{**SPLIT, "pattern": {"Regex": QWEN2_PATTERN}}, BYTE_LEVEL],
    "decoder": "ByteLevel",
}
RELEVANT = ("type", "pattern", "behavior", "invert", "add_prefix_space", "use_regex")


def splitting(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The sections of tokenizer.json that decide how text is split, apart from vocabulary and merges."""
    model = tokenizer["model"]
    return {
        "model": model["type"],
        "byte_fallback": bool(model.get("byte_fallback")),
        "ignore_merges": bool(model.get("ignore_merges")),
        "normalizers": [part["type"] for part in _sequence(tokenizer["normalizer"], "normalizers")],
        "pre_tokenizers": _relevant(_sequence(tokenizer["pre_tokenizer"], "pretokenizers")),
        "decoder": (tokenizer["decoder"] or {}).get("type"),
    }


def _known(name: str, vocabulary: Collection[str]) -> dict[str, Any]:
    """What `splitting` returns for a tokenizer that splits text exactly like llama.cpp's pre-tokenizer `name`."""
    return {
        **PUBLISHED,
        "ignore_merges": name in WHOLE_WORDS,
        "normalizers": [],
        "pre_tokenizers": _relevant(pre_tokenizers(name, vocabulary)),
    }


def _relevant(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    # ByteLevel's `trim_offsets` is left out: it changes offsets, not tokens.
    return [{key: part[key] for key in RELEVANT if key in part} for part in parts]


def _sequence(section: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if section is None:
        return []
    return list(section[key]) if section["type"] == "Sequence" else [section]


def known_name(model: Path) -> str:
    """llama.cpp's name of the pre-tokenizer that splits text like the tokenizer of `model`; "" if there is none."""
    path = model / "tokenizer.json"
    if not path.is_file():
        return ""
    tokenizer = json.loads(path.read_text("utf-8"))
    wanted = splitting(tokenizer)
    if wanted == PUBLISHED:
        return "deepseek-r1-qwen"
    vocabulary = tokenizer["model"].get("vocab", ())
    return next((name for name in PRE_TOKENIZERS if wanted == _known(name, vocabulary)), "")


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
