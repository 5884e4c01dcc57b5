"""The questions on the report's page, each with the systems' answers side by side.

There can be many thousands, which a Jinja template renders several times slower than these functions. Everything that
is not a constant passes through `escape`.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from chatmetrics.components.evaluate.judge import Excerpt, Judgement
from chatmetrics.components.evaluate.score import Item, ScoredAnswer, Verdict
from chatmetrics.components.nl2sql.schema import NOT_SHOWN

CHARACTERS_SHOWN = 400
CHARACTERS_OF_QUESTION = 500
CHARACTERS_OF_SQL = 4000
COLORS = 6


def render_questions(
    items: Sequence[Item],
    systems: Sequence[str],
    verdict: Verdict,
    schemas: Sequence[str],
    bind_names: bool = False,
    by_vote: bool = False,
) -> str:
    """Render the questions as HTML.

    Args:
        items: all questions.
        systems: the systems' names, whose positions decide their colors.
        verdict: the verdict that the marks show.
        schemas: names of the databases whose schemas are on the page, in its order.
        bind_names: whether the marks are those of answers with their names bound.
        by_vote: whether the marks are those of the elected answers.
    """
    keys = {name: f'<span class="key c{number % COLORS}"></span>{escape(name)}' for number, name in enumerate(systems)}
    databases = {item.db_id: _tag(item.db_id) for item in items}
    databases |= {
        name: f'<a class="tag" href="#schema-{number}">{escape(name)}</a>' for number, name in enumerate(schemas)
    }
    return "\n".join(
        _question(item, item.counted(bind_names, by_vote), keys, verdict, databases[item.db_id]) for item in items
    )


def shorten(text: str, characters: int = CHARACTERS_SHOWN) -> str:
    """The beginning of a long text, with its length."""
    return text if len(text) <= characters else f"{text[:characters]}… ({len(text)} characters)"


def _question(item: Item, counted: Item, keys: dict[str, str], verdict: Verdict, database: str) -> str:
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
        f"{_result(judgement.result)}{_others(answer)}</div>\n"
    )


def _others(answer: ScoredAnswer) -> str:
    """The answer with its names bound to the schema, and the one that the sampled answers elect, if they differ."""
    bound, voted = answer.bound, answer.voted
    parts = []
    if bound:
        parts.append(_other("names bound", bound.sql, bound.judgement, [repair.message for repair in bound.repairs]))
    if voted and voted.sql not in (answer.prediction.predicted, bound.sql if bound else ""):
        parts.append(_other("by vote", voted.sql, voted.judgement, []))
    return "".join(parts)


def _other(title: str, sql: str, judgement: Judgement, tags: Sequence[str]) -> str:
    outcome = "right" if judgement.strict else judgement.failure
    mark = f'<span class="{_color(judgement.strict)}">{escape(outcome)}</span>'
    return (
        f"<h3>{title}: {mark}{''.join(map(_tag, tags))}</h3>\n"
        f"<pre>{escape(shorten(sql, CHARACTERS_OF_SQL))}</pre>\n{_result(judgement.result)}"
    )


def _result(excerpt: Excerpt) -> str:
    """The first rows of a result as a table, or its error."""
    if not excerpt.columns:
        return f'<div class="bad">{escape(shorten(excerpt.message))}</div>'
    head = "".join([f"<th>{escape(shorten(column))}</th>" for column in excerpt.columns])
    rows = "".join([f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in excerpt.rows])
    shown = f", the first {len(excerpt.rows)} shown" if excerpt.row_count > len(excerpt.rows) else ""
    if excerpt.row_count and not excerpt.rows:
        shown = f", {NOT_SHOWN}"
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
