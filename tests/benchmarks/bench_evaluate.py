"""Speed and memory of the evaluator on published predictions, and their growth. `make bench` prints them."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.prediction_files import read_predictions
from chatmetrics.components.evaluate.score import score
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases
from tests.command import command_line

SPIDER, PREDICTIONS = (os.environ.get(f"CHATMETRICS_{name}_DIR", "") for name in ("SPIDER", "PREDICTIONS"))
OFFICIAL = os.environ.get("CHATMETRICS_OFFICIAL_EVALUATOR_DIR", "")

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


# What any evaluator has to do at least: run the distinct queries and read their rows, in one process without limits.
PLAIN_LOOP = """
import json, sqlite3, sys, time
folder, *files = sys.argv[1:]
records = [record for file in files for record in json.load(open(file))]
pairs = {(record["db_id"], record[name] or ""): None for record in records for name in ("gold", "predicted")}
opened, started = {}, time.perf_counter()
for db_id, sql in pairs:
    if db_id not in opened:
        opened[db_id] = sqlite3.connect(f"file:{folder}/{db_id}/{db_id}.sqlite?mode=ro", uri=True)
    try:
        opened[db_id].execute(sql).fetchall()
    except (sqlite3.Error, sqlite3.Warning):
        pass
print(len(pairs), time.perf_counter() - started)
"""
RUNS = 5  # of which the fastest counts, since other processes can only add to it


def test_the_whole_command_and_its_ratio_to_a_plain_loop(tmp_path: Path) -> None:
    """The runs of both alternate, so that both have the same machine. The official evaluator is run if it is there."""
    databases = f"{SPIDER}/database"
    files = sorted(Path(PREDICTIONS).glob("*.json"))
    for count in (1, len(files)):
        chosen = [argument for file in files[:count] for argument in ("--predictions", str(file))]
        evaluate = command_line("evaluate", *chosen, "--databases", databases, "--output", tmp_path / str(count))
        loop = [sys.executable, "-c", PLAIN_LOOP, databases, *map(str, files[:count])]
        own, loops = [], []
        for _ in range(RUNS):
            own.append(measured(evaluate))
            loops.append(measured(loop))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        wall, cpu = (min(run[index] for run in own) for index in (0, 1))
        loop_wall, loop_cpu = (min(run[index] for run in loops) for index in (0, 1))
        pairs = loops[0][2].split()[0]
        inside = min(float(output.split()[1]) for _, _, output in loops)
        print(
            f"\nevaluate, {count} sets of 972: {wall:.2f} s for the process, CPU {cpu:.2f} s, peak {peak:.0f} MiB; "
            f"a plain loop over the {pairs} distinct queries: {inside:.3f} s, ratio {wall / inside:.1f}; as a process: "
            f"{loop_wall:.3f} s, ratio {wall / loop_wall:.1f}; CPU {loop_cpu:.3f} s, ratio {cpu / loop_cpu:.1f}",
            end="",
        )
        if OFFICIAL and count == 1:
            official = measured(official_command(files[0], tmp_path))[0]
            print(f"\nthe official evaluator: {official:.2f} s, {official / wall:.1f} times as long", end="")


def official_command(predictions: Path, folder: Path) -> list[str]:
    """Run taoyds/test-suite-sql-eval, a checkout of which is at CHATMETRICS_OFFICIAL_EVALUATOR_DIR."""
    records = json.loads(predictions.read_text("utf-8"))
    gold = (f"{' '.join(record['gold'].split())}\t{record['db_id']}\n" for record in records)
    predicted = (f"{' '.join((record['predicted'] or 'SELECT').split())}\n" for record in records)
    (folder / "gold.txt").write_text("".join(gold), encoding="utf-8")
    (folder / "predicted.txt").write_text("".join(predicted), encoding="utf-8")
    script = f"{OFFICIAL}/evaluation.py"
    given = {"gold": folder / "gold.txt", "pred": folder / "predicted.txt", "db": f"{SPIDER}/database", "etype": "exec"}
    return [sys.executable, script, *(str(word) for key, value in given.items() for word in (f"--{key}", value))]


def measured(command: list[str]) -> tuple[float, float, str]:
    """Wall-clock and CPU seconds of a process with its children, and its output."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output


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
