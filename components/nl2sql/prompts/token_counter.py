"""Number of tokens of an example, counted with the model's tokenizer."""

import json
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate

BOS_AND_EOS = 2


class TokenCounter:
    """Counts tokens with a model's tokenizer.json, without importing transformers.

    Args:
        tokenizer: the tokenizer.
        template: the template of the prompts; also an attribute.

    Attributes:
        count_text: returns the number of tokens of a text, without BOS and EOS.
    """

    def __init__(self, tokenizer: Tokenizer, template: PromptTemplate) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.count_text, self.template = text_counter(tokenizer), template
        # A special token is never merged with the text before it. If one comes after the schema, the schema and the
        # rest can therefore be counted separately, and a schema that many questions share is counted once.
        added = tuple(token.content for token in tokenizer.get_added_tokens_decoder().values())
        self._is_separable = (template.after_schema + template.before_question).startswith(added)
        self._count_cached = lru_cache(maxsize=256)(self.count_text)

    def count(self, example: Example) -> int:
        """Number of tokens of a whole example: BOS, prompt, answer and EOS."""
        prompt = self.template.prompt(example.system, example.instruction, example.input)
        if not self._is_separable:
            return BOS_AND_EOS + self.count_text(prompt + example.output)
        schema = self.template.before_marked_question(example.system)
        question = prompt.removeprefix(schema) + example.output
        return BOS_AND_EOS + self._count_cached(schema) + self._count_cached(question)


@cache
def load_counter(model: Path, template: PromptTemplate) -> TokenCounter:
    """Load the token counter of the model in a folder. It is cached, since a large vocabulary takes a second to read.

    Args:
        model: the folder.
        template: the template of the prompts.

    Raises:
        InputError: tokenizer.json is missing or is not a tokenizer.
    """
    return TokenCounter(read_tokenizer(model), template)


def read_tokenizer(model: Path) -> Tokenizer:
    """Read the tokenizer of the model in a folder.

    Raises:
        InputError: tokenizer.json is missing or is not a tokenizer.
    """
    path = model / "tokenizer.json"
    try:
        content = path.read_text(encoding="utf-8")
        is_tokenizer = "model" in json.loads(content)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a tokenizer ({error}); check the tokenizer") from error
    if not is_tokenizer:
        raise InputError(f"{path}: not a tokenizer, it has no 'model'; check the tokenizer")
    return Tokenizer.from_str(content)


def text_counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """A function that counts the tokens of a text, without BOS and EOS."""
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a tokenizer; empty if there is no file.

    Raises:
        InputError: it holds something else.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); copy the model again") from error
    return content if isinstance(content, dict) else {}
