"""Texts from models, datasets and databases cannot form structure in the Markdown that the steps show."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chatmetrics.components.deploy.deploy import Deployed
from chatmetrics.components.deploy.endpoint import Endpoint
from chatmetrics.components.distill.answers.selection import Selected
from chatmetrics.components.distill.answers.verified import SampleAccuracy, SampleCounts
from chatmetrics.components.distill.distilled_dataset import Distillation
from chatmetrics.components.distill.synthesis.one_database import DatabaseReport
from chatmetrics.components.distill.teacher.spending import Spending
from chatmetrics.components.markdown import markdown_table, markdown_text
from chatmetrics.components.preprocess.dataset_card import (
    DatasetCard,
    Dropped,
    GoldCheck,
    GoldProblem,
    NotRewritten,
    NotShown,
    TokenCounts,
)
from chatmetrics.components.run_summary import summarize
from chatmetrics.components.storage.store import open_store
from tests.markdown import ADDRESS, HOSTILE, structure, words


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_a_paragraph_or_a_cell_and_reads_as_it_is(text: str) -> None:
    assert structure(markdown_text(text)) == structure("x")
    assert structure(markdown_table((text, "b"), [(text, 1)])) == structure("| a | b |\n|---|---|\n| x | 1 |")
    [shown] = words(markdown_text(text))
    assert shown.replace("\u200b", "") == " ".join(text.split())
    assert not ADDRESS.search(markdown_text(text))


def test_ordinary_words_are_not_changed() -> None:
    for text in ("89.5 % of 1,034 questions: (strict), +3.2 points; p = 0.01", "-3.2", "+3.2", "和平饭店, 4.5"):
        assert markdown_text(text) == text


def preprocess_card(text: str) -> str:
    place = {"id": text, "db_id": text, "split": text}
    return DatasetCard(
        source=text,
        format="alpaca",
        databases=text,
        schema_form="ddl",
        sample_values=0,
        sql_form="qualified",
        noise_tables=1,
        tokenizer=text,
        cutoff_length=100,
        limit=0,
        seed=0,
        splits={text: 1},
        query_types={text: {text: 1}},
        examples_by_database={text: {text: 1}},
        tokens=TokenCounts(),
        pruned={text: 1},
        dropped=[Dropped(**place, reason=text, tokens=1)],
        gold=GoldCheck(
            checked=1,
            failing=[GoldProblem(**place, failure=text, message=text)],
            empty=[],
            empty_by_database={text: 1},
            unpopulated={text: 1},
            missing={text: 1},
        ),
        not_shown=[NotShown(**place, message=text)],
        omitted={text: {text: text}},
        not_rewritten=[NotRewritten(**place, reason=text)],
        without_noise={text: 1},
    ).markdown()


def distill_card(text: str) -> str:
    one = {text: 1}
    numbers = {"questions": 1, "batches": 1, "by_language": {}, "by_table": {}, "by_foreign_key": {}, "missing": {}}
    return Distillation(
        teacher=text,
        verification="execution",
        round=1,
        asked=1,
        examples=one,
        counts=SampleCounts(
            questions=1,
            passing_questions=0,
            samples=1,
            passing=0,
            rejected=one,
            reasons=one,
            accuracy={text: SampleAccuracy(correct=1, compared=1)},
        ),
        synthesized=None,
        selected=Selected(),
        coverage={text: DatabaseReport(wanted=1, by_query_type=one, rejected=one, **numbers)},
        not_sent=0,
        unanswered=one,
        spending=Spending(
            requests=1,
            answered=1,
            failed=0,
            unknown=0,
            prompt_tokens=1,
            completion_tokens=1,
            cost=1,
            currency="$",
            budget=0,
            budget_tokens=0,
            cost_by_purpose=one,
        ),
    ).markdown()


def deploy_summary(text: str) -> str:
    endpoint = Endpoint(text, text, 1, text, text, 80, {}, text, 1)
    return Deployed(endpoint, text, text, text, True).markdown()


def run_summary(text: str) -> str:
    folder = Path("run")
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    step = {"step": "train", "node": text, "reason": text, "summary": text, "state": "failed", "kind": text}
    (folder / "steps" / "train.json").write_text(json.dumps({**step, "started": "2026-01-01T00:00:00+00:00"}))
    return summarize(open_store(str(folder)), text, "FAILED", text, 0.0)[1]


@pytest.mark.parametrize("card", [preprocess_card, distill_card, deploy_summary, run_summary])
def test_a_card_has_the_structure_that_it_has_with_a_word(
    card: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = structure(card("x"))
    for text in HOSTILE:
        assert structure(card(text)) == expected, text
