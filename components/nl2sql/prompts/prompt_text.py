"""Texts from outside as parts of a prompt: they must not be able to form special tokens."""

import re
import unicodedata
from functools import lru_cache

# Tokenizers, and servers that read a prompt, turn these forms into single tokens wherever they occur. They are those of
# all model families that llama.cpp converts; `forms_special_token` compares them with a tokenizer's own list. A space
# after the bracket prevents the token, and a reader still sees the text.
_WORDS = "s|bos|eos|pad|unk|mask|cls|sep|think|thinking|tools?|sop|eop|turn|EOT|EOD|image|filename|reponame"
_BRACKETED = (
    "INST|TOOL_[A-Z]+|AVAILABLE_TOOLS|SYSTEM_PROMPT|IMG|IMG_[A-Z]+|[gs]?MASK|CLS|SEP|PAD|UNK|PREFIX|MIDDLE|SUFFIX"
)
_SPECIAL_TOKEN = re.compile(
    r"<(?=[|｜][^<>\s]*>)"  # <|im_end|>, <｜User｜>
    r"|<(?=/?\w+_\w+>)"  # <start_of_turn>, <tool_call>, </tool_call>, <fim_prefix>
    rf"|<(?=/?(?:{_WORDS}|unused\d+|0x[0-9A-F]{{2}})>)"  # </s>, <bos>, <think>
    rf"|\[(?=/?(?:{_BRACKETED})\])"  # [INST], [/INST], [TOOL_CALLS], [gMASK]
)
_MARK = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
_PAIR = re.compile(r"\S\S")
# Control characters except the line feed and the tab, and Unicode's two other line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def content_text(text: str, tokens: tuple[str, ...] = ()) -> str:
    """A text from a user, a dataset or a database as a part of a prompt: schema, instruction and question.

    Training, evaluation and serving use this function, so that they agree. Its result is in Unicode's NFC, like the
    prompt: DeepSeek's tokenizer normalizes a text itself, but llama.cpp does not. Applying it twice changes nothing.

    Args:
        text: the text.
        tokens: more texts that are single tokens of the model's tokenizer, see `PromptTemplate.special_tokens`.
    """
    normal = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    normal = _SPECIAL_TOKEN.sub(lambda found: f"{found[0]} ", _CONTROL.sub(_escape, normal))
    return _without(normal, tokens) if tokens else normal


def forms_special_token(token: str, tokens: tuple[str, ...] = ()) -> bool:
    """Whether a text could still contain this special token of a tokenizer after `content_text`."""
    return bool(token.strip()) and token in content_text(f"x {token} x", tokens)


def is_mark(token: str, is_special: bool) -> bool:
    """Whether an added token of a tokenizer is structure, which a text must not form.

    Special tokens are. Of the others, those are that look like a mark, such as `<tool_call>` or `【x】`: punctuation
    around letters or digits. Words, punctuation alone and runs of spaces, which some tokenizers add, are ordinary text.

    A special token that cannot be kept out without destroying ordinary text is not: white space, letters apart from
    each other, and a backslash.
    """
    return (is_special or bool(_MARK.fullmatch(token))) and (bool(_PAIR.search(token)) or _is_symbol(token))


def _without(text: str, tokens: tuple[str, ...]) -> str:
    """The text with a space in each token, and with the number of each token that is a single character."""
    places, symbols = _places(tokens)
    text = text.translate(symbols)
    # A space can complete a token that has one. Each pass separates characters, so that there is a last one.
    while places and (spaced := places.sub(" ", text)) != text:
        text = spaced
    return text


@lru_cache(maxsize=64)
def _places(tokens: tuple[str, ...]) -> tuple[re.Pattern[str] | None, dict[int, str]]:
    """Where a space breaks a token, and the replacements of single characters.

    The places are found without consuming text, so that tokens that overlap, or are parts of others, are all broken.
    """
    normal = [unicodedata.normalize("NFC", token) for token in tokens]
    breaks = []
    for token in normal:
        if pair := _PAIR.search(token):
            at = pair.start() + 1
            breaks.append(f"(?<={re.escape(token[:at])})(?={re.escape(token[at:])})")
    symbols = {ord(token): f"\\u{ord(token):04x}" for token in normal if _is_symbol(token)}
    return re.compile("|".join(breaks)) if breaks else None, symbols


def _is_symbol(token: str) -> bool:
    return len(token) == 1 and not token.isalnum() and not token.isspace() and token != "\\"


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
