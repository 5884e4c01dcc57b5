"""The report for people: a self-contained HTML page, and a summary in Markdown."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chatmetrics.components.evaluate.report import Report
from chatmetrics.components.evaluate.score import Item

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT = "search.js"
CHARACTERS_SHOWN = 400


def html_report(report: Report, items: Sequence[Item], loss: Path | None, schemas: dict[str, str] | None = None) -> str:
    """Render the page: headline, tables, charts, and a searchable list of all questions with the systems' answers.

    All text from a model, a dataset or a database is escaped, and the page's content security policy allows only its
    own script.

    Args:
        report: the numbers.
        items: all questions.
        loss: PNG file of the loss curve.
        schemas: DDL by database.
    """
    script = (TEMPLATES / SCRIPT).read_text("utf-8")
    return (
        _environment(is_html=True)
        .get_template("report.html.jinja")
        .render(
            report=report,
            items=items,
            loss=_data_uri("image/png", loss.read_bytes()) if loss else "",
            schemas=schemas or {},
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def markdown_report(report: Report) -> str:
    """Render the report's tables, without the questions."""
    return _environment(is_html=False).get_template("report.md.jinja").render(report=report)


@cache
def _environment(is_html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "interval": _interval,
        "points": _points,
        "p": _p_value,
        "value": _value,
        "shorten": _shorten,
        "cell": _markdown_cell,
        "money": _money,
    }
    return environment


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


def _value(value: Any) -> str:
    """A database value as text; a blob as an SQL literal."""
    return _shorten(f"x'{value.hex()}'" if isinstance(value, bytes) else str(value))


def _shorten(text: str, characters: int = CHARACTERS_SHOWN) -> str:
    return text if len(text) <= characters else f"{text[:characters]}… ({len(text)} characters)"


def _markdown_cell(text: str) -> str:
    """Escape user text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
