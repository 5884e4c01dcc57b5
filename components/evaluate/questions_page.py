"""The questions on the report's page, each with the systems' answers side by side.

There can be many thousands, which a Jinja template renders several times slower than these functions. Everything that
is not a constant passes through `escape`.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from chatmetrics.components.evaluate.judge import Excerpt
from chatmetrics.components.evaluate.score import BoundAnswer, Item, ScoredAnswer, Verdict

CHARACTERS_SHOWN = 400
CHARACTERS_OF_QUESTION = 500
CHARACTERS_OF_SQL = 4000
COLORS = 6


def render_questions(
    items: Sequence[Item], systems: Sequence[str], verdict: Verdict, bind_names: bool, schemas: Sequence[str]
) -> str:
    """Render the questions as HTML.

    Args:
        items: all questions.
        systems: the systems' names, whose positions decide their colors.
        verdict: the verdict that the marks show.
        bind_names: whether the marks are those of answers with their names bound.
        schemas: names of the databases whose schemas are on the page, in its order.
    """
    keys = {name: f'<span class="key c{number % COLORS}"></span>{escape(name)}' for number, name in enumerate(systems)}
    databases = {item.db_id: _tag(item.db_id) for item in items}
    databases |= {
        name: f'<a class="tag" href="#schema-{number}">{escape(name)}</a>' for number, name in enumerate(schemas)
    }
    return "\n".join(_question(item, keys, verdict, bind_names, databases[item.db_id]) for item in items)


def shorten(text: str, characters: int = CHARACTERS_SHOWN) -> str:
    """The beginning of a long text, with its length."""
    return text if len(text) <= characters else f"{text[:characters]}… ({len(text)} characters)"


def _question(item: Item, keys: dict[str, str], verdict: Verdict, bind_names: bool, database: str) -> str:
    counted = item.with_names_bound if bind_names else item
    right = [answer.correct(verdict) for answer in counted.answers.values()]
    marks = "".join(f'<span class="{_color(value)}">{"✓" if value else "✗"}</span> ' for value in right)
    tags = [*item.query_types, item.hardness, *filter(None, (item.split, item.seen))]
    title = escape(shorten(item.question or item.sql, CHARACTERS_OF_QUESTION))
    answers = "".join(_answer(keys[name], answer) for name, answer in item.answers.items())
    return (
        f'<details data-tags="{_outcomes(item, right)}">\n'
        f"<summary>{marks}\n{title}\n{database}{''.join(map(_tag, tags))}</summary>\n"
        f'<div class="soft">{escape(item.id)}</div>\n<div class="sides">\n'
        f"<div><h3>gold</h3>\n<pre>{escape(shorten(item.sql, CHARACTERS_OF_SQL))}</pre>\n{_result(item.gold)}</div>\n"
        f"{answers}</div>\n</details>"
    )


def _outcomes(item: Item, right: Sequence[bool]) -> str:
    """The outcomes by which the page's script filters."""
    found = {
        "gold": not item.scored,
        "wrong": item.scored and not all(right),
        "split": min(right) != max(right),
        "verdicts": any(a.judgement.official != a.judgement.strict for a in item.answers.values()),
    }
    return " ".join(name for name, applies in found.items() if applies)


def _answer(key: str, answer: ScoredAnswer) -> str:
    judgement, prediction = answer.judgement, answer.prediction
    tags: list[str] = list(judgement.reasons)
    if judgement.official != judgement.strict:
        tags.insert(0, f"official verdict: {'right' if judgement.official else 'wrong'}")
    if prediction.usage and prediction.usage.truncated:
        tags.append("answer cut at the token limit")
    outcome = "right" if judgement.strict else judgement.failure
    mark = f'<span class="{_color(judgement.strict)}">{escape(outcome)}</span>'
    return (
        f"<div><h3>{key}: {mark}{''.join(map(_tag, tags))}</h3>\n"
        f"<pre>{escape(shorten(prediction.predicted, CHARACTERS_OF_SQL)) or '(no SQL)'}</pre>\n"
        f"{_result(judgement.result)}{_bound(answer.bound) if answer.bound else ''}</div>\n"
    )


def _bound(bound: BoundAnswer) -> str:
    """The answer with its names bound to the schema."""
    judgement = bound.judgement
    outcome = "right" if judgement.strict else judgement.failure
    repairs = "".join(_tag(repair.message) for repair in bound.repairs)
    return (
        f'<h3>names bound: <span class="{_color(judgement.strict)}">{escape(outcome)}</span>{repairs}</h3>\n'
        f"<pre>{escape(shorten(bound.sql, CHARACTERS_OF_SQL))}</pre>\n{_result(judgement.result)}"
    )


def _result(excerpt: Excerpt) -> str:
    """The first rows of a result as a table, or its error."""
    if not excerpt.columns:
        return f'<div class="bad">{escape(shorten(excerpt.message))}</div>'
    head = "".join([f"<th>{escape(shorten(column))}</th>" for column in excerpt.columns])
    rows = "".join([f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in excerpt.rows])
    shown = f", the first {len(excerpt.rows)} shown" if excerpt.row_count > len(excerpt.rows) else ""
    return (
        f'<div class="scroll"><table class="result">\n<tr>{head}</tr>\n{rows}</table></div>\n'
        f'<div class="soft">{excerpt.row_count} row{"" if excerpt.row_count == 1 else "s"}{shown}</div>'
    )


def _cell(value: Any) -> str:
    """A database value; a blob as an SQL literal."""
    if value is None:
        return '<td><i class="soft">NULL</i></td>'
    text = f"x'{value.hex()}'" if isinstance(value, bytes) else str(value)
    return f"<td>{escape(shorten(text))}</td>"


def _tag(text: str) -> str:
    return f' <span class="tag">{escape(text)}</span>'


def _color(is_right: bool) -> str:
    return "good" if is_right else "bad"
