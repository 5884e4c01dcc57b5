"""Speed and memory of the evaluator on published predictions, and their growth. `make bench` prints them."""

import json
import os
import resource
import subprocess
import time
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.predictions import read_predictions
from chatmetrics.components.evaluate.score import score
from chatmetrics.components.nl2sql.databases import SqliteDatabases
from tests.command import command_line

SPIDER, PREDICTIONS = (os.environ.get(f"CHATMETRICS_{name}_DIR", "") for name in ("SPIDER", "PREDICTIONS"))

pytestmark = pytest.mark.skipif(
    not (SPIDER and PREDICTIONS), reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_PREDICTIONS_DIR is not set"
)


def test_score_published_predictions() -> None:
    """Compare with `python evaluation.py --etype exec` of taoyds/test-suite-sql-eval on the same machine."""
    databases = Path(SPIDER) / "database"
    for file in sorted(Path(PREDICTIONS).glob("*.json")):
        predictions = read_predictions(file)
        with SqliteDatabases(databases, query_seconds=5) as opened:
            started = time.perf_counter()
            score({"it": predictions}, opened)
            elapsed = time.perf_counter() - started
        print(f"\n{file.stem}: {len(predictions)} items in {elapsed:.2f} s, {len(predictions) / elapsed:.0f}/s", end="")


def test_the_whole_command(tmp_path: Path) -> None:
    files = sorted(Path(PREDICTIONS).glob("*.json"))
    for count in (1, len(files)):
        chosen = [argument for file in files[:count] for argument in ("--predictions", str(file))]
        places = ["--databases", f"{SPIDER}/database", "--output", tmp_path / str(count)]
        started = time.perf_counter()
        subprocess.run(command_line("evaluate", *chosen, *places), check=True, capture_output=True)
        elapsed = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"\nevaluate, {count} sets of 972: {elapsed:.2f} s for the process, peak {peak:.0f} MiB", end="")


def test_cost_grows_linearly(tmp_path: Path) -> None:
    items = json.loads(next(iter(sorted(Path(PREDICTIONS).glob("*.json")))).read_text("utf-8"))
    for times in (1, 2, 4):
        path = tmp_path / f"{times}.json"
        path.write_text(json.dumps(items * times), encoding="utf-8")
        predictions = read_predictions(path)
        with SqliteDatabases(Path(SPIDER) / "database", query_seconds=5) as opened:
            started = time.perf_counter()
            score({"it": predictions}, opened)
            elapsed = time.perf_counter() - started
        print(f"\n{len(predictions)} items: {1000 * elapsed / len(predictions):.3f} ms per item", end="")
