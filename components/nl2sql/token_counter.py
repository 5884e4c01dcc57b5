"""How many tokens an example takes, counted as the model will see it."""

import json
from functools import cache, lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompt import render_prompt

BOS_AND_EOS = 2
USER = "<｜User｜>"


class TokenCounter:
    """Counts with a model's own tokenizer.json, without the library that trains the model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        # A token of its own is never merged with what stands before it, so the parts can be counted apart, and a
        # schema that many questions share only once.
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        self._is_separable = USER in added
        self._tokens_cached = lru_cache(maxsize=256)(self._tokens)

    def count(self, example: Example) -> int:
        """Tokens of a whole example: BOS, prompt, answer and EOS."""
        if not self._is_separable:
            prompt = render_prompt(example.system, example.instruction, example.input)
            return BOS_AND_EOS + self._tokens(prompt + example.output)
        question = render_prompt("", example.instruction, example.input) + example.output
        return BOS_AND_EOS + self._tokens_cached(example.system) + self._tokens_cached(question)

    def count_text(self, text: str) -> int:
        """Tokens of a text alone, without BOS and EOS."""
        return self._tokens(text)

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


@cache
def load_counter(model: Path) -> TokenCounter:
    """The counter of the model in a folder, read once in a process: a large vocabulary takes a second.

    Raises:
        InputError: there is no tokenizer.json, or it is not a tokenizer.
    """
    path = model / "tokenizer.json"
    try:
        content = path.read_text(encoding="utf-8")
        is_tokenizer = "model" in json.loads(content)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a tokenizer ({error}); check the tokenizer") from error
    if not is_tokenizer:
        raise InputError(f"{path}: not a tokenizer, it has no 'model'; check the tokenizer")
    return TokenCounter(Tokenizer.from_str(content))
