"""The boxes of a picture: a table with its columns, or a cluster of tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from chatmetrics.components.nl2sql.picture.text import clipped, columns_of, title_of_cut

HEADER, ROW = 26, 17  # heights
PADDING = 8
MARK = 36  # width of the marks of keys
LETTER, LETTER_OF_TITLE, LETTER_OF_NOTE = 6.7, 7.3, 6.1  # widths of a column of text, in fonts of 11, 12 and 10 pixels
NARROWEST, WIDEST = 150, 320  # of boxes
LONGEST_NAME, LONGEST_NOTE, LONGEST_LINE = 30, 10, 44  # columns of text, so that all fit into the widest box
ASCENT = 0.68  # of a line, where the text stands
STACK = 4  # by which the boxes of a pile are apart


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a box.

    Attributes:
        text: untrusted text.
        mark: "PK", "FK" or both, before the text; None for a line that begins at the edge of the box.
        note: untrusted text at the right edge.
        style: a class of the style sheet.
        column: the column that joins at this line; empty for a line that no join can end at.
    """

    text: str
    mark: str | None = None
    note: str = ""
    style: str = ""
    column: str = ""

    @property
    def longest(self) -> int:
        """The most columns of `text`."""
        return LONGEST_LINE if self.mark is None else LONGEST_NAME

    @property
    def width(self) -> float:
        """The width that the line needs."""
        start = PADDING if self.mark is None else MARK
        note = LETTER_OF_NOTE * columns_of(clipped(self.note, LONGEST_NOTE)) + PADDING if self.note else 0
        return start + LETTER * columns_of(clipped(self.text, self.longest)) + note + PADDING

    def draw(self, top: int, width: int) -> str:
        """The line, whose upper edge is at `top`."""
        y = round(top + ASCENT * ROW)
        text = clipped(self.text, self.longest)
        style = f' class="{self.style}"' if self.style else ""
        start = PADDING if self.mark is None else MARK
        parts = [f'<text class="mark" x="{PADDING}" y="{y}">{self.mark}</text>'] if self.mark else []
        parts.append(f'<text{style} x="{start}" y="{y}">{escape(text)}{title_of_cut(self.text, text)}</text>')
        if self.note:
            note = escape(clipped(self.note, LONGEST_NOTE))
            parts.append(f'<text class="note" x="{width - PADDING}" y="{y}">{note}</text>')
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class Box:
    """A box with a header.

    Attributes:
        title: untrusted text of the header.
        rows: the lines below it.
        note: text at the right edge of the header, of ours.
        style: classes of the style sheet.
        stacked: whether it looks like a pile of boxes.
    """

    title: str
    rows: Sequence[Row]
    note: str = ""
    style: str = ""
    stacked: bool = False

    @property
    def height(self) -> int:
        """The height, including the edges of a pile."""
        return HEADER + ROW * len(self.rows) + (PADDING if self.rows else 0) + 2 * STACK * self.stacked

    @property
    def width(self) -> float:
        """The width that the text needs."""
        header = LETTER_OF_TITLE * columns_of(self._clipped_title) + self._header_without_title
        return max([header, *(row.width for row in self.rows)]) + 2 * STACK * self.stacked

    @property
    def _clipped_title(self) -> str:
        """The title, cut so that it fits into the widest box."""
        return clipped(self.title, int((WIDEST - 2 * STACK - self._header_without_title) / LETTER_OF_TITLE))

    @property
    def _header_without_title(self) -> float:
        """The width of the header without its title."""
        return 2 * PADDING + (LETTER_OF_NOTE * columns_of(self.note) + PADDING if self.note else 0)

    @property
    def _lines(self) -> list[tuple[Row, int]]:
        """The lines with their upper edges."""
        return [(row, HEADER + PADDING // 2 + ROW * number) for number, row in enumerate(self.rows)]

    def port(self, column: str) -> float:
        """Where a join with a column ends, from the upper edge: at its line, or else at the header."""
        lines = {row.column: top + ROW / 2 for row, top in self._lines if row.column}
        return lines.get(column, HEADER / 2)

    def draw(self, x: float, y: float, width: int) -> str:
        """The box. It is an SVG of its own, which cuts off what a strange font could draw outside."""
        inner, height = width - 2 * STACK * self.stacked, self.height - 2 * STACK * self.stacked
        text = self._clipped_title
        lines = [
            f'<svg class="box{f" {self.style}" if self.style else ""}" x="{x:g}" y="{y:g}" '
            f'width="{width}" height="{self.height}">{title_of_cut(self.title, text)}',
            *(_frame(STACK * n, inner, height) for n in (range(2, 0, -1) if self.stacked else ())),
            _frame(0, inner, height),
            f'<path class="head" d="M1 {HEADER}V5q0-4 4-4H{inner - 5}q4 0 4 4V{HEADER}z"/>',
            f'<text class="name" x="{PADDING}" y="{round(ASCENT * HEADER)}">{escape(text)}</text>',
        ]
        if self.note:
            lines.append(f'<text class="note" x="{inner - PADDING}" y="{round(ASCENT * HEADER)}">{self.note}</text>')
        lines += [row.draw(top, inner) for row, top in self._lines]
        return "".join([*lines, "</svg>"])


def common_width(boxes: Iterable[Box]) -> int:
    """One width for all boxes."""
    return round(min(max([NARROWEST, *(box.width for box in boxes)]), WIDEST))


def _frame(offset: int, width: int, height: int) -> str:
    """The edge of a box."""
    start = offset + 0.5
    return f'<rect class="edge" x="{start}" y="{start}" width="{width - 1}" height="{height - 1}" rx="5"/>'
