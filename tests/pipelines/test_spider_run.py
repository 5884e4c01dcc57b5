"""A part of Spider through the whole DAG, with a random base model that has the published base model's tokenizer."""

import json
import os
from pathlib import Path

import pytest

from tests.command import finished_process
from tests.models import random_base

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not {"CHATMETRICS_SPIDER_DIR", "CHATMETRICS_TOKENIZER_DIR"} <= os.environ.keys(),
        reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_TOKENIZER_DIR is not set",
    ),
]
SETTINGS = {
    "preprocess.limit": 32,
    "train.precision": "fp32",
    "train.max_steps": 4,
    "train.batch_size": 2,
    "train.gradient_accumulation": 1,
    "evaluate.limit": 6,
    "evaluate.max_tokens": 16,
    "evaluate.concurrency": 2,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize(("recipe", "scores_base"), [("spider-7b", True), ("spider-7b-schema", False)])
def test_spider_is_preprocessed_trained_merged_converted_served_and_scored(
    recipe: str, scores_base: bool, tmp_path: Path
) -> None:
    base = random_base(tmp_path / "base", Path(os.environ["CHATMETRICS_TOKENIZER_DIR"]))
    work = tmp_path / "runs"
    own = {"base_model": base, "preprocess.source": os.environ["CHATMETRICS_SPIDER_DIR"]}
    settings = {**SETTINGS, **own, "evaluate.score_base": str(scores_base).lower()}
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = finished_process("run", recipe, "--work-dir", work, "--no-ask", *overrides, timeout=1800)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(next(work.glob("logs/*/outcome.json")).read_bytes())
    report = json.loads(Path(outcome["report"]).with_name("report.json").read_bytes())
    card = json.loads(next(work.glob("artifacts/**/dataset_card.json")).read_bytes())
    assert card["splits"] == {"train": 32, "dev": 32}
    assert [score["strict"]["total"] for score in report["systems"].values()] == [6] * (1 + scores_base)
    [manifest] = work.glob(f"models/{recipe}/*/manifest.json")
    assert outcome["manifest_uri"] == manifest.as_uri()


def test_a_real_base_is_trained_and_answers_on_a_laptop(tmp_path: Path) -> None:
    """The recipe spider-laptop with its own base model, on 200 questions and in a few steps."""
    work = tmp_path / "runs"
    settings = {
        "preprocess.source": os.environ["CHATMETRICS_SPIDER_DIR"],
        "preprocess.limit": 200,
        "train.max_steps": 4,
        "train.gradient_accumulation": 2,
        "evaluate.limit": 8,
        "evaluate.base_limit": 2,
        "evaluate.max_tokens": 64,
        "evaluate.acceptance_test_questions": 4,
        "evaluate.acceptance_test_threshold": 0,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = finished_process("run", "spider-laptop", "--work-dir", work, *overrides, timeout=1800)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(next(work.glob("logs/*/outcome.json")).read_bytes())
    report = json.loads(Path(outcome["report"]).with_name("report.json").read_bytes())
    assert {name: score["strict"]["total"] for name, score in report["systems"].items()} == {"base": 2, "student": 8}
    card = json.loads(next(work.glob("artifacts/**/dataset_card.json")).read_bytes())
    assert "<|im_start|>" in card["prompt_template"]
    # The last lines are the question, its SQL and rows, and the command that asks again.
    last = done.stdout[done.stdout.index("How many singers are from each country?") :]
    assert "SELECT" in last.upper() and "--db" in last and "concert_singer.sqlite" in last
