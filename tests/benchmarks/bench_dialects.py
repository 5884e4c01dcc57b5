"""The whole demo in other dialects: students of PostgreSQL, MariaDB and DuckDB, scored on the demo's data there.

`python -m tests.benchmarks.bench_dialects WORK_FOLDER [DIALECT...]` prints the accuracy of each student.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from chatmetrics.components.preprocess.hotel import generate
from tests.nl2sql.hotels import DIALECTS, copied
from tests.pipelines.runs import run_recipe

RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "hotel-demo.yaml"


def main(work: Path, dialects: list[str]) -> None:
    """Run the demo in each dialect and print how many answers are right."""
    print(f"{'':12} {'unseen values':>28} {'all questions':>28} {'teacher, all':>28} {'minutes':>8}", flush=True)
    for dialect in dialects:
        folder = work / dialect
        (folder / "server").mkdir(parents=True)
        generate(folder / "demo", 42)
        started = time.monotonic()
        with copied(next((folder / "demo").rglob("*.sqlite")), dialect, folder / "server") as address:
            settings = (f"preprocess.translate_to={address}", "evaluate.gate=0", "evaluate.gate_split=")
            run = run_recipe(RECIPE, folder / "runs", *settings, "evaluate.gate_teacher=null")
        if run.status:
            print(f"{dialect:12} failed: {run.error[-500:]}")
            continue
        [report] = (folder / "runs").glob("artifacts/**/report.json")
        systems = json.loads(report.read_bytes())["systems"]
        student, teacher = systems["student"], systems["teacher"]
        scores = (student["groups"]["split"]["unseen value"], student["strict"], teacher["strict"])
        minutes = (time.monotonic() - started) / 60
        print(f"{dialect:12} {' '.join(map(shown, scores))} {minutes:8.1f}", flush=True)


def shown(score: dict[str, Any]) -> str:
    """An accuracy with its interval."""
    low, high = (100 * bound for bound in score["interval"])
    text = f"{score['correct']} of {score['total']}: {100 * score['accuracy']:.1f} [{low:.1f}, {high:.1f}]"
    return f"{text:>28}"


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:] or list(DIALECTS))
