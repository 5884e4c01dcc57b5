"""What is counted, and a page that untrusted model output cannot turn into something else."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.page import html_report, markdown_report
from chatmetrics.components.evaluate.predictions import Prediction, write_predictions
from chatmetrics.components.evaluate.report import Report, summarize
from chatmetrics.components.evaluate.score import Item, score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.example import Example

HOSTILE = "SELECT '<script>alert(1)</script>' AS \"<img src=x onerror=alert(2)>\", '\"><a href=javascript:x>', x'00ff'"
TIMEOUT = 1.0


def predictions(model: str, examples: list[Example], queries: list[str]) -> list[Prediction]:
    return [
        Prediction(e.id, e.db_id, e.question, e.sql, sql, model, 0.25, 100, 20, truncated=False)
        for e, sql in zip(examples, queries, strict=True)
    ]


@pytest.fixture
def items(examples: list[Example], databases: Path) -> list[Item]:
    student = [examples[0].sql, "SELECT 3.0", HOSTILE, examples[3].sql, "SELECT 1"]
    base = ["SELEC", "SELECT 3", examples[2].sql, "DROP TABLE hotel", "SELECT stars FROM hotel"]
    asked = {"student": predictions("student", examples, student), "base": predictions("base", examples, base)}
    return score(examples, asked, databases, TIMEOUT)


def summary(items: list[Item], **settings: object) -> Report:
    return summarize("hotel", items, {}, EvaluateSettings.model_validate(settings))


def test_counts(items: list[Item]) -> None:
    report = summary(items)
    student, base = report.models["student"], report.models["base"]

    assert (report.questions, report.gold_failures, report.empty_gold) == (5, 1, 1)
    assert (student.correct, student.total, student.accuracy) == (3, 4, 0.75)
    assert student.failures == {"ok": 3, "wrong result": 1}
    assert base.failures == {"ok": 2, "does not parse": 1, "refused": 1}
    assert {name: (group.correct, group.total) for name, group in student.by_scenario.items()} == {
        "single table": (1, 2),
        "aggregate": (2, 2),
    }
    assert {name: (group.correct, group.total) for name, group in base.by_split.items()} == {
        "held-out form": (2, 2),
        "held-out value": (0, 2),
    }
    assert report.comparison is not None
    assert (report.comparison.only_student, report.comparison.only_base) == (2, 1)
    assert report.comparison.difference == 0.25


def test_gate(items: list[Item]) -> None:
    assert summary(items, gate=0.75).passed
    assert not summary(items, gate=0.76).passed
    assert summary(items, gate=1.0, gate_split="held-out value").passed
    assert not summary(items, gate=0.6, gate_split="held-out form").passed


def test_without_a_base_there_is_no_comparison(examples: list[Example], databases: Path) -> None:
    asked = {"student": predictions("student", examples, [example.sql for example in examples])}
    items = score(examples, asked, databases, TIMEOUT)
    report = summary(items)
    assert report.comparison is None and set(report.models) == {"student"}
    assert "student against base" not in html_report(report, items, None)


def test_when_every_gold_query_fails_nothing_is_claimed(examples: list[Example], databases: Path) -> None:
    broken = examples[4:]
    asked = {model: predictions(model, broken, ["SELECT 1"]) for model in ("student", "base")}
    items = score(broken, asked, databases, TIMEOUT)
    report = summary(items, gate=0.5)
    assert (report.models["student"].total, report.gold_failures, report.passed) == (0, 1, False)
    assert "not counted" in html_report(report, items, None)


def test_order_counts_but_rows_that_tie_may_change_places(examples: list[Example], databases: Path) -> None:
    gold = "SELECT name FROM hotel ORDER BY rating > 4.2 DESC"  # two hotels tie
    fields = {name: getattr(examples[0], name) for name in Example.__slots__}
    example = Example(**{**fields, "sql": gold})
    for predicted, expected in (("SELECT name FROM hotel ORDER BY rating DESC", True), (f"{gold}, 1 LIMIT -1", True)):
        asked = {"student": predictions("student", [example], [predicted])}
        assert score([example], asked, databases, TIMEOUT)[0].outcomes["student"].correct is expected
    asked = {"student": predictions("student", [example], ["SELECT name FROM hotel ORDER BY rating"])}
    assert not score([example], asked, databases, TIMEOUT)[0].outcomes["student"].correct


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_model_output_is_shown_and_never_becomes_markup(items: list[Item], tmp_path: Path) -> None:
    loss = tmp_path / "loss.png"
    loss.write_bytes(b"\x89PNG")
    page = Page(html_report(summary(items), items, loss))

    assert HOSTILE in page.text and "<i>Ritz</i>" in page.text and "x'00ff'" in page.text
    assert "The best hotel?" in page.text and "held-out form" in page.text
    assert not page.tags & {"script", "a", "i", "iframe", "link", "object", "form"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 2 and all(source.startswith("data:image/") for source in sources)


def test_every_wrong_answer_is_on_the_page_with_both_results(items: list[Item]) -> None:
    page = Page(html_report(summary(items), items, None))
    for item in items:
        assert item.example.question in page.text or all(outcome.correct for outcome in item.outcomes.values())
        for outcome in item.outcomes.values():
            assert outcome.correct or outcome.prediction.predicted in page.text
            assert outcome.correct or outcome.excerpt.message in page.text


def test_markdown_has_the_numbers_and_no_model_output(items: list[Item]) -> None:
    text = markdown_report(summary(items, gate=0.9))
    assert "| aggregate | 2 | 100.0 % | 34.2 – 100.0 % | 50.0 % |" in text
    assert "NOT passed" in text
    assert "script" not in text


def test_predictions_survive_half_a_surrogate_pair(tmp_path: Path, examples: list[Example]) -> None:
    written = predictions("student", examples[:1], ["SELECT '浦东\ud83d'"])
    write_predictions(tmp_path / "predictions.jsonl", written)
    text = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")
    assert "浦东" in text and json.loads(text)["predicted"] == "SELECT '浦东\ud83d'"
