"""How llama.cpp splits text into words before byte-pair encoding, in the form of tokenizer.json.

llama.cpp names the way of splitting in a GGUF file's `tokenizer.ggml.pre`. Source of the patterns: llm_tokenizer_bpe
and impl::load in its src/llama-vocab.cpp. It does not normalize text first, so `é` as two characters stays two.
"""

import re
from collections.abc import Collection
from typing import Any

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
# With this option the library splits by GPT-2's pattern, which is llama.cpp's too.
GPT2 = {**BYTE_LEVEL, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
# llama.cpp's spelling of (?i:'s|...), which would also match the long s.
WORDS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


QWEN2 = [_split(rf"{WORDS}|\p{{N}}|{REST}"), BYTE_LEVEL]
PRE_TOKENIZERS = {
    "gpt-2": [GPT2],
    "smollm": [DIGITS, GPT2],
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "llama-bpe": [_split(rf"{WORDS}|\p{{N}}{{1,3}}|{REST}"), BYTE_LEVEL],
}
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}
# Those that take a word which is a token as that token, without merging its bytes, and add BOS unless the file says no.
WHOLE_WORDS = ("llama-bpe",)


def pre_tokenizers(name: str, vocabulary: Collection[str]) -> list[dict[str, Any]]:
    """The pre-tokenizers that split text as llama.cpp's `name` does.

    A byte that the vocabulary lacks is dropped by llama.cpp after merging, and by `tokenizers` before, so that what is
    on its two sides could be merged. Such bytes are therefore split off.

    Args:
        name: a key of PRE_TOKENIZERS.
        vocabulary: the tokens.
    """
    missing = "".join(letter for letter in byte_letters().values() if letter not in vocabulary)
    return PRE_TOKENIZERS[name] + ([_split(f"[{re.escape(missing)}]")] if missing else [])


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in a byte-level vocabulary (GPT-2's bytes_to_unicode)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return dict(sorted(letters.items()))
