"""Markdown with text from models, datasets and databases, which must not be able to form structure."""

import html
import re
from collections.abc import Iterable, Sequence

# What begins or ends structure in CommonMark and GitHub's Markdown: emphasis, code, links, images, cells, and bare
# addresses. At the beginning of a line also headings, lists, rules and underlines of headings.
_STRUCTURE = re.compile(r"[\\`*_~\[\]|#!]|:(?=//)|(?<=mailto):|(?<=xmpp):|(?<=\w)\.(?=[^\W\d_])", re.IGNORECASE)
_LINE_START = re.compile(r"^(\d*)(?=[-+=:.)]+(?:\s|$))")
_MAIL = re.compile(r"@(?=\w)")


def markdown_text(value: object) -> str:
    """A value as one line of plain text in Markdown: a paragraph's text, an item's, or a table's cell.

    White space, line ends included, becomes one space. HTML is escaped by entities, because some renderers know no
    backslash before `<`. A zero-width space after `@` prevents a link to a mail address, which a backslash would not.
    """
    text = html.escape(" ".join(str(value).split()), quote=False)
    text = _LINE_START.sub(r"\1\\", _STRUCTURE.sub(r"\\\g<0>", text))
    return _MAIL.sub("@\u200b", text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table, or a remark if it has no rows. Header and cells are escaped."""
    names = [markdown_text(name) for name in header]
    lines = [f"| {' | '.join(map(markdown_text, row))} |" for row in rows]
    if not lines:
        return f"({names[0]}: none)"
    return "\n".join([f"| {' | '.join(names)} |", "|" + "---|" * len(names), *lines])
