"""Draws a schema as an SVG: tables, the keys that join them, and what a prompt shows of it for a question."""

from html import escape

from chatmetrics.components.nl2sql.picture.boxes import LETTER_OF_TITLE, common_width
from chatmetrics.components.nl2sql.picture.content import Content, Join, ShownPart, content_of
from chatmetrics.components.nl2sql.picture.layout import MARGIN, Layout, arrange
from chatmetrics.components.nl2sql.picture.style import STYLE
from chatmetrics.components.nl2sql.picture.text import clipped, title
from chatmetrics.components.nl2sql.schema import Schema, constraints

NARROWEST = 720  # so that the legend fits
LINE = 22  # height of a line of text above or below the boxes
LONGEST_NAME = 30  # columns of text


def draw_schema(schema: Schema, shown: ShownPart | None = None) -> str:
    """Draw a schema as the text of an SVG file, which is the same for the same schema.

    All names, types and values are untrusted: they are escaped and cut. The file has no scripts, links or fonts. It
    has no sample values, except those that the question names, and none of private columns. Of a schema with many
    tables, the tables that are shown for the question are drawn, and clusters of the others.

    Args:
        schema: the whole schema.
        shown: what a prompt shows of it for a question.
    """
    content = content_of(schema, shown)
    box_width = common_width(content.boxes)
    lines = [(join.start, join.end) for join in content.joins]
    layout = arrange([box.height for box in content.boxes], box_width, lines)
    about = _about(schema)
    foot = _legend(content, shown)
    width, top = round(max(layout.width, NARROWEST)), LINE * (2 if shown else 1) + LINE // 2
    height = round(top + layout.height + LINE * len(foot))
    joins = "\n".join(_draw_join(join, content, layout) for join in content.joins)
    boxes = "\n".join(box.draw(*layout.corners[number], box_width) for number, box in enumerate(content.boxes))
    texts = [
        _text(about, LINE, width, "name"),
        _text(shown.question, 2 * LINE, width, "question") if shown else "",
        *(_text(line, height + LINE * (number - len(foot)) + 8, width, "soft") for number, line in enumerate(foot)),
    ]
    label = escape(f"Schema {about}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="erd" role="img" aria-label="{label}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">\n<title>{label}</title>\n<style>{STYLE}</style>\n'
        f'<rect class="page" width="{width}" height="{height}"/>\n'
        f"{''.join(texts)}\n"
        f'<g transform="translate(0 {top})">\n{joins}\n{boxes}\n</g>\n</svg>\n'
    )


def _about(schema: Schema) -> str:
    columns = sum(len(table.columns) for table in schema.tables)
    keys = len(constraints(schema.foreign_keys))
    counts = [(len(schema.tables), "table"), (columns, "column"), (keys, "foreign key")]
    numbers = ", ".join(f"{number:,} {name}{'' if number == 1 else 's'}" for number, name in counts)
    return f"{clipped(schema.db_id, LONGEST_NAME)} with {numbers}"


def _legend(content: Content, shown: ShownPart | None) -> list[str]:
    """The lines below the boxes: only what the picture has."""
    styles = {box.style for box in content.boxes} | {join.style for join in content.joins}
    lines = {
        "blue: named by the question, or between such tables; grey: left out; numbers: scores": shown is not None,
        "piles: clusters of tables; numbers on lines: joins between them": any(box.stacked for box in content.boxes),
        f"not drawn: {content.omitted_joins:,} pairs of clusters with the fewest joins": content.omitted_joins > 0,
        "dashed: views and virtual tables": any("view" in style.split() for style in styles),
        "dotted: joins that no key declares, with their scores": "dots" in styles,
    }
    return [line for line, applies in lines.items() if applies]


def _draw_join(join: Join, content: Content, layout: Layout) -> str:
    ports = content.boxes[join.start].port(join.columns[0]), content.boxes[join.end].port(join.columns[1])
    line = layout.line(join.start, join.end, *ports)
    style = f"line {join.style}".strip()
    x, y = line.label
    arrow = f'<path class="{style}" d="{line.arrow}"/>' if join.is_directed else ""
    label = f'<text class="label" x="{x:.0f}" y="{y + 3:.0f}">{join.label}</text>' if join.label else ""
    return f'<path class="{style}" d="{line.path}">{title(join.text)}</path>{arrow}{label}'


def _text(text: str, y: float, width: int, style: str) -> str:
    """A line of untrusted text, which is cut at the picture's width."""
    most = int((width - 2 * MARGIN) / LETTER_OF_TITLE)
    return f'<text class="{style}" x="{MARGIN}" y="{y:g}">{escape(clipped(text, most))}</text>'
