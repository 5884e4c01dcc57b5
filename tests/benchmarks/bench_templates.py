"""A base model asked the same questions in each prompt template, without training. `make bench` prints the answers."""

import json
import os
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.evaluate import evaluate
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.prompts.template import TEMPLATES
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.manifest import describe

SPIDER, GGUF = os.environ.get("CHATMETRICS_SPIDER_DIR", ""), os.environ.get("CHATMETRICS_BASE_GGUF", "")
BASE = Path(__file__).parents[2] / "pipelines" / "demo" / "base_model"  # its tokenizer counts tokens; nothing is pruned
QUESTIONS = 50
NAMES = ("chatml", "plain", "deepseek3")

pytestmark = pytest.mark.skipif(
    not (SPIDER and GGUF), reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_BASE_GGUF, a GGUF file, is not set"
)


def test_bench_templates(tmp_path: Path) -> None:
    settings = {"source": SPIDER, "tokenizer": str(BASE), "template": "deepseek3", "limit": QUESTIONS}
    preprocess(PreprocessSettings.model_validate({**settings, "cutoff_length": 8192, "workers": 1}), tmp_path / "data")
    asked = EvaluateSettings(max_tokens=128, concurrency=1, context_length=2048, acceptance_test_questions=0)
    for name in NAMES:
        template = TEMPLATES[name]
        gguf = tmp_path / name / "base.gguf"
        gguf.parent.mkdir()
        gguf.symlink_to(GGUF)
        describe("base", gguf, {"prompt_template": template.text})
        report = evaluate(asked, tmp_path / "data", "", gguf, None, tmp_path / name / "report", None)
        lines = (tmp_path / name / "report" / "predictions-student.jsonl").read_text("utf-8").splitlines()
        answers = [json.loads(line) for line in lines]
        found = sum(bool(answer["predicted"]) for answer in answers)
        tokens = sum(answer["prompt_tokens"] for answer in answers) / len(answers)
        right, truncated = report.systems["student"].strict.correct, sum(answer["truncated"] for answer in answers)
        print(
            f"\n{name:9}: SQL in {found} of {len(answers)} answers, {right} right, {truncated} cut at 128 tokens, "
            f"{tokens:.0f} tokens per prompt"
        )
