"""Untrusted text in an SVG: without characters that XML forbids, no wider than its place, and escaped."""

import unicodedata
from html import escape

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_TITLE = 200  # characters of a tooltip


def printable(text: str) -> str:
    """The text on one line. What cannot be printed becomes a replacement character.

    That includes what XML forbids, and marks that reverse the order of the characters after them.
    """
    return "".join(letter if letter.isprintable() else REPLACEMENT for letter in " ".join(text.split()))


def columns_of(text: str) -> int:
    """The width of a text in a monospaced font: a Chinese character has two columns, others one."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def clipped(text: str, most: int) -> str:
    """A printable text in at most so many columns; what is cut off becomes an ellipsis."""
    text = printable(text.lstrip()[: 10 * most])  # names can be very long
    if columns_of(text) <= most:
        return text
    kept, width = "", 1
    for letter in text:
        width += columns_of(letter)
        if width > most:
            break
        kept += letter
    return f"{kept}…"


def title(text: str) -> str:
    """A tooltip."""
    return f"<title>{escape(clipped(text, LONGEST_TITLE))}</title>"


def title_of_cut(text: str, shown: str) -> str:
    """A tooltip with a text of which less is shown; empty if all of it is."""
    return "" if clipped(text, LONGEST_TITLE) == shown else title(text)
