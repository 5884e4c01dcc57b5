"""The special tokens of a model's tokenizer that no text of a prompt may form."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chatmetrics.components.nl2sql.prompts.prompt_text import forms_special_token, is_mark
from chatmetrics.components.nl2sql.prompts.token_counter import read_object

LISTS = ("additional_special_tokens", "extra_special_tokens")


def special_tokens(model: Path, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The tokens for `PromptTemplate.special_tokens`, sorted; empty for most models.

    They are those that a tokenizer, or llama.cpp, finds in a text before anything else: added tokens, which a GGUF file
    has as CONTROL or USER_DEFINED. Which of them count is decided by `is_mark`. Those whose form `content_text` knows
    without being told are left out.

    Args:
        model: folder with the tokenizer's files.
        tokenizer: its tokenizer.json.

    Raises:
        InputError: a file cannot be read.
    """
    marks = {token for token, is_special in _added(model, tokenizer) if is_mark(token, is_special)}
    return tuple(sorted(token for token in marks if forms_special_token(token)))


def _added(model: Path, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """Added tokens, and whether they are special."""
    for token in tokenizer.get_added_tokens_decoder().values():
        yield token.content, token.special
        if not token.special:
            yield token.content.replace("\u2581", " "), False  # as the converter of llama.cpp writes them
    # transformers adds what tokenizer.json lacks.
    config = read_object(model / "tokenizer_config.json")
    for name, value in {**read_object(model / "special_tokens_map.json"), **config}.items():
        for item in _items(value) if name.endswith("_token") or name in LISTS else ():
            yield item, True
    decoder = config.get("added_tokens_decoder")
    for token in decoder.values() if isinstance(decoder, dict) else ():
        if isinstance(token, dict):
            yield from ((text, bool(token.get("special"))) for text in _items(token))
    yield from ((token, False) for token in read_object(model / "added_tokens.json"))


def _items(value: Any) -> Iterator[str]:
    """The texts of a token or of several: a text, an object with its content, or a list or an object of these."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and "content" in value:
        yield from _items(value["content"])
    elif isinstance(value, list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _items(item)
