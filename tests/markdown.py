"""What a Markdown renderer makes of a text from outside, for tests of reports and cards."""

import re

from markdown_it import MarkdownIt

HOSTILE = [
    "[a](http://x.example)",
    "![a](http://x.example/a.png)",
    "[a]: http://x.example",
    "<img src=x onerror=alert(1)><!-- ",
    "<http://x.example> http://x.example www.x.example x.example/a a@x.example mailto:a@x.example",
    "a\n# b\n\n- c\n\n> d\n\n---\n\n    e",
    "# a",
    "1. a",
    "12) a",
    "- a",
    "a\n===",
    "a | b\n|---|---|\n| c | d |",
    "\\| \\\\| \\[a](b)",
    "a ` b `` c ``` d\n```\ne\n~~~\nf",
    "&lt;b&gt; &#60;b&#62;",
    "**a** __b__ *c* _d_ ~~e~~",
    "a\r\u2028\x85\x0b- b",
]
# Addresses to which GitHub's Markdown, or another renderer, links without brackets.
ADDRESS = re.compile(r"\b(?:https?|mailto):\S|\bwww\.|\w@\w|\w\.[a-z]")
_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
_PLAIN = {"text", "softbreak"}


def structure(markdown: str) -> list[str]:
    """The kinds of all parts of a text but its plain words."""
    parts = (part for token in _PARSER.parse(markdown) for part in [token, *(token.children or [])])
    return [part.type for part in parts if part.type not in _PLAIN]


def words(markdown: str) -> list[str]:
    """The texts that a reader sees, one for each paragraph, heading or cell."""
    inline = (token for token in _PARSER.parse(markdown) if token.type == "inline")
    return ["".join(part.content for part in token.children or []) for token in inline]
