"""The report's numbers, and its page, which untrusted model output cannot change."""

import base64
import hashlib
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chatmetrics.components.errors import ServiceError
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.page import MOST_PICTURES, draw_schemas, html_report, markdown_report
from chatmetrics.components.evaluate.prediction_files import read_predictions
from chatmetrics.components.evaluate.predictions import (
    Prediction,
    TokenUsage,
    predicted,
    write_records,
)
from chatmetrics.components.evaluate.report import Accuracy, Report, summarize
from chatmetrics.components.evaluate.score import Item, MissingDatabase, score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases
from chatmetrics.components.nl2sql.databases.execution import Result
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.schema import Column, ForeignKey, Schema, Table
from tests.markdown import ADDRESS, structure
from tests.markdown import HOSTILE as HOSTILE_MARKDOWN
from tests.serve.browser import chromium, needs_chromium, run_in_page
from tests.waiting import wait_until

HOSTILE = "SELECT '<script>alert(1)</script>' AS \"<img src=x onerror=alert(2)>\", '\"><a href=javascript:x>', x'00ff'"
TIMEOUT = 1.0


def answers(examples: list[Example], queries: list[str]) -> list[Prediction]:
    usage = TokenUsage(latency=0.25, first_token=0.05, prompt_tokens=100, completion_tokens=20, truncated=False)
    return [predicted(example, sql, usage) for example, sql in zip(examples, queries, strict=True)]


def scored(
    databases: Path, predictions: dict[str, list[Prediction]], training: TrainingData | None = None
) -> list[Item]:
    with SqliteDatabases(databases, TIMEOUT) as opened:
        return score(predictions, opened, training)[0]


@pytest.fixture
def items(examples: list[Example], databases: Path) -> list[Item]:
    student = [examples[0].sql, "SELECT 3.0", HOSTILE, examples[3].sql, "SELECT 1"]
    base = ["SELEC", "SELECT 3", examples[2].sql, "DROP TABLE hotel", "SELECT stars FROM hotel"]
    return scored(databases, {"student": answers(examples, student), "base": answers(examples, base)})


def summary(items: list[Item], **settings: object) -> Report:
    return summarize("hotel", items, {}, EvaluateSettings.model_validate(settings))


def counts(groups: dict[str, Accuracy]) -> dict[str, tuple[int, int]]:
    return {name: (group.correct, group.total) for name, group in groups.items()}


class DeadlyDatabases(SqliteDatabases):
    """A query kills the scoring process, as the kernel does when the machine is out of memory."""

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(db_id, queries)


def test_a_scoring_process_that_is_killed_is_an_error(examples: list[Example], databases: Path) -> None:
    with DeadlyDatabases(databases, TIMEOUT) as opened, pytest.raises(ServiceError, match="scoring process was killed"):
        score({"student": answers(examples, ["SELECT 1"] * len(examples))}, opened)


class SlowDatabases(SqliteDatabases):
    """A query takes long enough to look at the running processes."""

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        time.sleep(60)
        return super().execute(db_id, queries)


def score_slowly(databases: Path, predictions: list[Prediction]) -> None:
    with SlowDatabases(databases, TIMEOUT) as opened:
        score({"student": predictions}, opened)


def test_scoring_processes_end_with_a_parent_that_is_killed(examples: list[Example], databases: Path) -> None:
    predictions = answers(examples, ["SELECT 1"] * len(examples))
    parent = multiprocessing.get_context("spawn").Process(target=score_slowly, args=(databases, predictions))
    parent.start()
    children = wait_until(lambda: children_of(parent.pid), 120)
    parent.kill()
    parent.join()
    wait_until(lambda: not any(map(is_running, children)), 120)


def children_of(pid: int | None) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_no_text_changes_the_structure_of_the_markdown(items: list[Item]) -> None:
    def markdown(text: str) -> str:
        renamed = [
            replace(item, split=text, answers={f"{text} {name}": answer for name, answer in item.answers.items()})
            for item in items
        ]
        settings = EvaluateSettings(gate=0.5, gate_split=text)
        return markdown_report(summarize(text, renamed, {text: MissingDatabase(2, text)}, settings, few_shot=text))

    for text in HOSTILE_MARKDOWN:
        assert structure(markdown(text)) == structure(markdown("x"))
        assert not ADDRESS.search(markdown(text))


def test_counts(items: list[Item]) -> None:
    report = summary(items)
    student, base = report.systems["student"], report.systems["base"]

    assert (report.questions, report.gold_failures, report.empty_gold) == (5, 1, 1)
    assert (student.strict.correct, student.strict.total, student.strict.accuracy) == (3, 4, 0.75)
    assert student.failures == {"ok": 3, "wrong result": 1}
    assert student.reasons == {"both results are empty": 1}
    assert base.failures == {"ok": 2, "does not parse": 1, "refused": 1}
    assert counts(student.groups["query_type"]) == {"single table": (3, 4), "aggregate": (2, 2)}
    assert counts(student.groups["hardness"]) == {"easy": (3, 3), "medium": (0, 1)}
    assert counts(base.groups["split"]) == {"unseen wording": (2, 2), "unseen value": (0, 2)}
    (comparison,) = report.comparisons
    assert (comparison.only_second, comparison.only_first, comparison.difference) == (2, 1, 0.25)
    assert comparison.interval[0] < 0 < comparison.interval[1]
    assert comparison.sentence == (
        f"base and student are not distinguishable on these 4 questions; {comparison.needed} would be needed to detect "
        "25.0 points"
    )
    assert set(comparison.query_types) == {"single table", "aggregate"}


def test_a_significant_difference_is_reported(examples: list[Example], databases: Path) -> None:
    many = [examples[0]] * 20
    right, wrong = [example.sql for example in many], ["SELECT 0"] * 20
    report = summary(scored(databases, {"new": answers(many, right), "old": answers(many, wrong)}))
    assert report.comparisons[0].sentence == "new is better than old by 100.0 points on these 20 questions"


def test_systems_are_compared_on_the_questions_that_both_answered(examples: list[Example], databases: Path) -> None:
    gold = [example.sql for example in examples]
    first, second = answers(examples[:3], gold[:3]), answers(examples[1:4], gold[1:4])
    report = summary(scored(databases, {"first": first, "second": second}))
    assert report.questions == 4
    assert [score.strict.total for score in report.systems.values()] == [3, 3]
    assert report.comparisons[0].questions == 2


def test_unseen_questions_are_scored_separately(examples: list[Example], databases: Path) -> None:
    training = TrainingData([("  浦东新区有多少家酒店", "SELECT 1"), ("Other words", "select NAME from t where x < 5")])
    items = scored(databases, {"student": answers(examples, [example.sql for example in examples])}, training)
    assert counts(summary(items).systems["student"].groups["training data"]) == {
        "question seen in training": (1, 1),
        "only its SQL skeleton seen": (1, 1),
        "unseen": (2, 2),
    }


def test_costs_follow_from_tokens_and_prices(items: list[Item]) -> None:
    costs = summary(items, api_price=0.5, gpu_price=10, queries_per_day=100_000, concurrency=1).costs
    assert costs is not None
    student = costs.systems["student"]
    assert (student.tokens, student.api_question) == (120, pytest.approx(0.06))
    assert student.api_month == pytest.approx(0.06 * 100_000 * 30)
    assert (student.machines, student.machine_month) == (1, pytest.approx(10 * 24 * 30))  # 345,600 answers per day


def test_gate(items: list[Item]) -> None:
    assert summary(items, gate=0.75).passed
    assert not summary(items, gate=0.76).passed
    assert summary(items, gate=1.0, gate_split="unseen value").passed
    assert not summary(items, gate=0.6, gate_split="unseen wording").passed


def test_without_a_base_there_is_no_comparison(examples: list[Example], databases: Path) -> None:
    items = scored(databases, {"student": answers(examples, [example.sql for example in examples])})
    report = summary(items)
    assert report.comparisons == [] and set(report.systems) == {"student"}
    assert "Paired differences" not in html_report(report, items, None)


def test_if_every_gold_query_fails_the_accuracy_is_unknown(examples: list[Example], databases: Path) -> None:
    broken = examples[4:]
    items = scored(databases, {name: answers(broken, ["SELECT 1"]) for name in ("student", "base")})
    report = summary(items, gate=0.5)
    assert (report.systems["student"].strict.total, report.gold_failures, report.passed) == (0, 1, False)
    assert "They are not counted for any system." in html_report(report, items, None)


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


def test_model_output_is_escaped(items: list[Item], tmp_path: Path) -> None:
    loss = tmp_path / "loss.png"
    loss.write_bytes(b"\x89PNG")
    text = html_report(summary(items), items, loss, {"hotel": "CREATE TABLE hotel (name TEXT); -- <script>"})
    page = Page(text)

    assert HOSTILE in page.text and "<i>Ritz</i>" in page.text and "x'00ff'" in page.text
    assert "The best hotel?" in page.text and "unseen wording" in page.text
    assert text.count("<script") == 1 and not page.tags & {"iframe", "link", "object", "form"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    sources = {value for name, value in page.attributes if name in ("src", "href")}
    assert all(source.startswith(("data:image/", "#schema-")) for source in sources)
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text


def test_schemas_are_drawn_on_the_page(items: list[Item]) -> None:
    schemas = {
        f"db{number}": Schema(f"db{number}", (Table("</svg><script>", (Column("id", "INT", 1),)),))
        for number in range(MOST_PICTURES + 2)
    }
    ddl = {db_id: schema.render("ddl") for db_id, schema in schemas.items()}
    text = html_report(summary(items), items, None, ddl, draw_schemas(schemas))
    page = Page(text)
    assert text.count('<svg xmlns="http://www.w3.org/2000/svg" class="erd" role="img"') == MOST_PICTURES
    assert f"{MOST_PICTURES} of {MOST_PICTURES + 2} schemas have a picture." in page.text
    assert text.count("<script") == 1 and "Schema db0 with 1 table, 1 column, 0 foreign keys" in page.text
    assert "have a picture" not in html_report(summary(items), items, None, ddl)


@needs_chromium
def test_the_pages_policy_allows_the_pictures(items: list[Item], tmp_path: Path) -> None:
    tables = (Table("hotel", (Column("id", "INT", 1),)), Table("room", (Column("hotel_id", "INT"),)))
    schema = Schema("hotel", tables, (ForeignKey("room", "hotel_id", "hotel", "id"),))
    path = tmp_path / "report.html"
    ddl = {"hotel": schema.render("ddl")}
    path.write_text(html_report(summary(items), items, None, ddl, draw_schemas({"hotel": schema})), "utf-8")
    script = """
      const box = document.querySelector("svg.erd svg.box");
      const style = getComputedStyle(box.querySelector(".head"));
      return [document.querySelectorAll("svg.erd .line").length, style.fill, box.getBoundingClientRect().width > 100];
    """
    with chromium(tmp_path / "profile") as browser:
        assert run_in_page(browser, path.as_uri(), script) == [2, "rgb(226, 232, 240)", True]


def test_every_question_is_on_the_page_with_all_results(items: list[Item]) -> None:
    page = Page(html_report(summary(items), items, None))
    for item in items:
        assert item.question in page.text
        for answer in item.answers.values():
            assert answer.prediction.predicted in page.text
            assert answer.judgement.result.message in page.text


def test_markdown_has_the_numbers_and_no_model_output(items: list[Item]) -> None:
    text = markdown_report(summary(items, gate=0.9))
    assert "| aggregate | 100.0 % of 2 | 34.2 – 100.0 % | 50.0 % of 2 |" in text
    assert "NOT passed" in text
    assert "script" not in text


def test_predictions_with_a_lone_surrogate_are_written_and_read(tmp_path: Path, examples: list[Example]) -> None:
    written = answers(examples[:1], ["SELECT '浦东\ud83d'"])
    write_records(tmp_path / "predictions.jsonl", [prediction.fields for prediction in written])
    text = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")
    assert "浦东" in text and json.loads(text)["predicted"] == "SELECT '浦东\ud83d'"
    assert read_predictions(tmp_path / "predictions.jsonl") == written
