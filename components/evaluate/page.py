"""The report for people: a self-contained HTML page, and a summary in Markdown."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from chatmetrics.components import console
from chatmetrics.components.evaluate.questions_page import render_questions, shorten
from chatmetrics.components.evaluate.report import Report
from chatmetrics.components.evaluate.score import Item
from chatmetrics.components.markdown import markdown_text
from chatmetrics.components.nl2sql.picture.picture import draw_schema
from chatmetrics.components.nl2sql.schema import Schema

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT = "search.js"
PNG_SIGNATURE = b"\x89PNG"
MOST_PICTURES = 20  # of schemas, each of up to about 100 KB


def prepare() -> None:
    """Compile the templates, which takes longer than filling them in."""
    _template("report.html.jinja")
    _template("report.md.jinja")


def draw_schemas(schemas: Mapping[str, Schema]) -> dict[str, str]:
    """Draw the first schemas as SVG, by database; the others would make the page too large."""
    return {db_id: draw_schema(schema) for db_id, schema in islice(schemas.items(), MOST_PICTURES)}


def html_report(
    report: Report,
    items: Sequence[Item],
    loss: Path | None,
    schemas: Mapping[str, str] | None = None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """Render the page: headline, tables, charts, and a searchable list of all questions with the systems' answers.

    All text from a model, a dataset or a database is escaped, and the page's content security policy allows only its
    own script.

    Args:
        report: the numbers.
        items: all questions.
        loss: PNG file of the loss curve; it is left out, with a warning, if it cannot be used.
        schemas: DDL by database.
        pictures: SVG by database, see `draw_schemas`; it is not escaped.
    """
    script = (TEMPLATES / SCRIPT).read_text("utf-8")
    schemas = schemas or {}
    return _template("report.html.jinja").render(
        report=report,
        questions=render_questions(
            items, list(report.systems), report.verdict, list(schemas), report.bind_names, report.answer == "vote"
        ),
        loss=_loss_curve(loss) if loss else "",
        schemas=schemas,
        pictures=pictures or {},
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _loss_curve(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        console.warning(f"the page does not show the loss curve: {path}: {error.strerror}")
        return ""
    if not content.startswith(PNG_SIGNATURE):
        console.warning(f"the page does not show the loss curve: {path} is not a PNG file")
        return ""
    return _data_uri("image/png", content)


def markdown_report(report: Report) -> str:
    """Render the report's tables, without the questions."""
    return _template("report.md.jinja").render(report=report)


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=".html" in name,
        finalize=None if ".html" in name else _escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "interval": _interval,
        "points": _points,
        "p": _p_value,
        "shorten": shorten,
        "money": _money,
    }
    return environment.get_template(name)


def _escaped(value: object) -> object:
    """Escape each text that the Markdown template inserts."""
    return markdown_text(value) if isinstance(value, str) else value


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f} – {100 * bounds[1]:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _p_value(p_value: float) -> str:
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def _money(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
