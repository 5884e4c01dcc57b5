"""The report for people: one HTML file that needs nothing else, and its summary in Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chatmetrics.components.evaluate.chart import embedded_png, scenario_chart
from chatmetrics.components.evaluate.report import Report
from chatmetrics.components.evaluate.score import Item

TEMPLATES = Path(__file__).parent / "templates"
CHARACTERS_SHOWN = 200


def html_report(report: Report, items: Sequence[Item], loss: Path | None) -> str:
    """Render the page: headline, tables, charts, and every question that a model got wrong.

    Everything that comes from a model, a dataset or a database is escaped, and the page forbids scripts.

    Args:
        report: the numbers.
        items: all questions.
        loss: the training's loss curve, a PNG file.
    """
    wrong = [item for item in items if item.scored and not item.outcomes["student"].correct]
    base_only = [
        item
        for item in items
        if item.scored and item not in wrong and not all(outcome.correct for outcome in item.outcomes.values())
    ]
    return (
        _environment(is_html=True)
        .get_template("report.html.jinja")
        .render(
            report=report,
            chart=scenario_chart(report),
            loss=embedded_png(loss) if loss else "",
            wrong=wrong,
            base_only=base_only,
            failed_gold=[item for item in items if not item.scored],
        )
    )


def markdown_report(report: Report) -> str:
    """Render the tables, without the questions."""
    return _environment(is_html=False).get_template("report.md.jinja").render(report=report)


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


def _value(value: Any) -> str:
    """A database value as text; a blob in SQL's notation."""
    return _shorten(f"x'{value[:CHARACTERS_SHOWN].hex()}'" if isinstance(value, bytes) else str(value))


def _shorten(text: str, characters: int = CHARACTERS_SHOWN) -> str:
    return text if len(text) <= characters else f"{text[:characters]}… ({len(text)} characters)"
