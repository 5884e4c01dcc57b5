"""Texts from outside as parts of a prompt: they must not be able to form special tokens."""

import re
import unicodedata

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
# Control characters except the line feed and the tab, and Unicode's two other line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def content_text(text: str) -> str:
    """A text from a user, a dataset or a database as a part of a prompt: schema, instruction and question.

    Training, evaluation and serving use this function, so that they agree. Its result is in Unicode's NFC, like the
    prompt: DeepSeek's tokenizer normalizes a text itself, but llama.cpp does not. Applying it twice changes nothing.
    """
    normal = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    return _SPECIAL_TOKEN.sub(lambda found: f"{found[0]} ", _CONTROL.sub(_escape, normal))


def forms_special_token(token: str) -> bool:
    """Whether a text could still contain this special token of a tokenizer after `content_text`."""
    return bool(token.strip()) and token in content_text(f"x {token} x")


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
