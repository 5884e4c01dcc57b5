"""The accuracy ladder: what each setting is worth, with a real base model on Spider.

    python -m tests.benchmarks.ladder SPIDER --work-dir FOLDER             # all rungs that are not in ladder.json yet
    python -m tests.benchmarks.ladder SPIDER --work-dir FOLDER ddl plan    # these rungs

A rung is the recipe spider-laptop with some settings, on 2,000 training and 500 dev questions. It is compared with
another rung by a paired test. A ladder that was stopped resumes where it was: `chatmetrics run` repeats no step,
training resumes from its checkpoint, and answers are kept. What was measured is in ladder.json: for each question of
the subset whether it was right. From that the table of docs/accuracy.md is written.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chatmetrics.components.evaluate.score import NOT_SCORED
from chatmetrics.components.evaluate.statistics import mcnemar_p_value, wilson_interval

RESULTS = Path(__file__).with_name("ladder.json")
DOCUMENT = Path(__file__).parents[2] / "docs" / "accuracy.md"
START, END = "<!-- ladder -->\n", "<!-- /ladder -->"
SUBSET = ("preprocess.limit=2000", "evaluate.limit=500")
ONLY_STUDENT = ("evaluate.score_base=false",)

# Which of an answer's verdicts counts: that of its SQL as it is, with its names bound, or of the answer that a vote
# elects.
Reading = Literal["strict", "bound_strict", "voted_strict"]


@dataclass(frozen=True)
class Rung:
    """A row of the table.

    Attributes:
        name: on the command line and in ladder.json.
        title: what it changes.
        settings: overrides of the recipe.
        below: the rung that it is compared with.
        system: whose answers count.
        reading: which verdict counts.
    """

    name: str
    title: str
    settings: tuple[str, ...] = ()
    below: str = "ddl"
    system: Literal["student", "base"] = "student"
    reading: Reading = "strict"


BASE_ALONE = ("evaluate.base_limit=0",)
RUNGS = (
    Rung("base", "the base, zero-shot, in its own template", BASE_ALONE, "", "base"),
    Rung(
        "few-shot",
        "the base with 3 similar examples in the prompt",
        (*BASE_ALONE, "evaluate.few_shot=3", "evaluate.few_shot_choice=similar"),
        "base",
        "base",
    ),
    Rung("no schema", "trained on gold SQL, without schema (the published form)", ("preprocess.schema=none",), "base"),
    Rung("ddl", "with DDL in the prompts", (), "no schema"),
    Rung(
        "m-schema",
        "with M-Schema and 3 values a column",
        ("preprocess.schema=m-schema", "preprocess.sample_values=3"),
    ),
    Rung("canonical", "answers in canonical SQL", ("preprocess.sql_form=canonical",)),
    Rung("from first", "answers with FROM first", ("preprocess.sql_form=from_first",)),
    Rung("1 per schema", "1 question per schema in a row instead of 8", ("train.questions_per_schema=1",)),
    Rung("4 per schema", "4 questions per schema in a row", ("train.questions_per_schema=4",)),
    Rung("2e-4", "learning rate 2e-4 instead of 5e-4", ("train.learning_rate=2e-4",)),
    Rung("1e-3", "learning rate 1e-3", ("train.learning_rate=1e-3",)),
    Rung("rank 16", "rank 16 instead of 64", ("train.lora_rank=16",)),
    Rung("2 epochs", "2 epochs instead of 1", ("train.epochs=2",)),
    Rung("4 epochs", "4 epochs", ("train.epochs=4",), "2 epochs"),
    Rung("plan tables", "tables and joins before the SQL", ("preprocess.plan=tables",)),
    Rung("plan", "tables, joins and conditions before the SQL", ("preprocess.plan=conditions",)),
    Rung("noise", "5 unrelated tables added to each schema in training", ("preprocess.noise_tables=5",)),
    Rung("F16", "not quantized, instead of Q8_0", ("convert.quantization=F16",)),
    Rung("Q4_K_M", "quantized to Q4_K_M", ("convert.quantization=Q4_K_M",)),
    Rung("bound", "names bound to the schema", (), reading="bound_strict"),
    Rung(
        "repair", "asked again with the database's error message", ("evaluate.repair_attempts=1",), "bound",
        reading="bound_strict",
    ),
    Rung(
        "vote",
        "a vote of 9 answers, with names bound",
        ("evaluate.sampled_answers=8", "evaluate.sampling_temperature=1.0", "evaluate.sampling_min_p=0.1"),
        "bound",
        reading="voted_strict",
    ),
)  # fmt: skip


def main() -> None:
    """Measure the rungs on the command line, or all that are missing, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spider", type=Path, help="Spider's folder")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder of the runs, outside the checkout")
    parser.add_argument("rungs", nargs="*", metavar="RUNG", help=", ".join(rung.name for rung in RUNGS))
    arguments = parser.parse_intermixed_args()
    measured: dict[str, Any] = json.loads(RESULTS.read_bytes()) if RESULTS.exists() else {}
    known = {rung.name: rung for rung in RUNGS}
    if unknown := [name for name in arguments.rungs if name not in known]:
        parser.error(f"{unknown[0]!r} is not a rung; choose from {', '.join(known)}")
    for rung in [known[name] for name in arguments.rungs] or [rung for rung in RUNGS if rung.name not in measured]:
        print(f"rung {rung.name}: {rung.title}", flush=True)
        measured[rung.name] = measure(rung, arguments.spider, arguments.work_dir)
        RESULTS.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")
        write_table(measured)


def measure(rung: Rung, spider: Path, work: Path) -> dict[str, Any]:
    """Run a rung; its verdicts in the order of the questions, `1` for right, and its wall-clock seconds.

    Seconds are those of this call: steps that an earlier rung or an interrupted ladder has finished take none.
    """
    score = () if rung.system == "base" else ONLY_STUDENT
    settings = (f"preprocess.source={spider}", *SUBSET, *score, *rung.settings)
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = [
        str(Path(sys.executable).with_name("chatmetrics")),
        "run",
        "spider-laptop",
        "--work-dir",
        str(work),
        "--no-ask",
    ]
    started = time.monotonic()
    if status := subprocess.run([*command, *overrides], check=False).returncode:
        sys.exit(status)  # the run has said why
    seconds = round(time.monotonic() - started)
    outcomes = sorted(work.glob("logs/*/outcome.json"), key=os.path.getmtime)
    items = Path(json.loads(outcomes[-1].read_bytes())["report"]).with_name("items.jsonl")
    return {"settings": list(rung.settings), "seconds": seconds, "verdicts": verdicts_in(items, rung)}


def verdicts_in(items: Path, rung: Rung) -> dict[str, str]:
    """The verdict of each scored question in a report's items.jsonl: 1 for right, 0 for wrong."""
    verdicts = {}
    for line in items.read_text("utf-8").splitlines():
        item = json.loads(line)
        if item.get("system", "student") == rung.system and not {*NOT_SCORED} & {*item["reasons"]}:
            # An answer that was not repaired, or on which all agree, has no second verdict.
            verdicts[item["id"]] = "01"[item.get(rung.reading, item["strict"])]
    return verdicts


def write_table(measured: Mapping[str, Any]) -> None:
    """Replace the table between the markers of docs/accuracy.md."""
    text = DOCUMENT.read_text("utf-8")
    before, rest = text.split(START)
    DOCUMENT.write_text(
        before + START + "".join(f"{row}\n" for row in table(measured)) + END + rest.split(END)[1], "utf-8"
    )


def table(measured: Mapping[str, Any]) -> Iterable[str]:
    """The table's lines, in Markdown."""
    yield "| rung | what changes | right of all | accuracy [95 % interval] | compared with | points | p | seconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for rung in RUNGS:
        if rung.name not in measured:
            yield f"| {rung.name} | {rung.title} | not measured | | {rung.below} | | | |"
            continue
        verdicts = measured[rung.name]["verdicts"]
        right, total = sum(map(int, verdicts.values())), len(verdicts)
        low, high = wilson_interval(right, total)
        share = f"{right} of {total} | {right / total:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
        compared = _compared(verdicts, measured.get(rung.below, {}).get("verdicts", {}))
        seconds = measured[rung.name]["seconds"]
        yield f"| {rung.name} | {rung.title} | {share} | {rung.below} | {compared} | {seconds:,} |"


def _compared(verdicts: Mapping[str, str], below: Mapping[str, str]) -> str:
    """The difference to another rung in points, and McNemar's p-value, on the questions that both have."""
    both = verdicts.keys() & below.keys()
    if not both:
        return " | "
    gained = sum(verdicts[question] > below[question] for question in both)
    lost = sum(verdicts[question] < below[question] for question in both)
    p_value = mcnemar_p_value(gained, lost)
    return f"{100 * (gained - lost) / len(both):+.1f} | {'< 0.001' if p_value < 0.001 else f'{p_value:.3f}'}"


if __name__ == "__main__":
    main()
