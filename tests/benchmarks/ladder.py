"""The accuracy ladder: what each setting is worth, with a real base model on Spider.

    python -m tests.benchmarks.ladder SPIDER --work-dir FOLDER             # all rungs that are not in ladder.json yet
    python -m tests.benchmarks.ladder SPIDER --work-dir FOLDER ddl plan    # these rungs

A rung is the recipe spider-laptop with some settings, on 2,000 training and 500 dev questions or on all. It is compared
with another rung by a paired test. A ladder that was stopped resumes where it was: `chatmetrics run` repeats no step,
training resumes from its checkpoint, and answers are kept. What was measured is in ladder.json: the questions
that were right. From that the table of docs/accuracy.md is written.
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

COLUMNS = (
    *("rung", "what changes", "right of all", "accuracy [95 % interval]", "names bound"),
    *("compared with", "points", "p", "seconds", "ms"),
)

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
        is_whole: whether it is measured on all questions instead of a part.
    """

    name: str
    title: str
    settings: tuple[str, ...] = ()
    below: str = "ddl"
    system: Literal["student", "base"] = "student"
    reading: Reading = "strict"
    is_whole: bool = False


BASE_ALONE = ("evaluate.base_limit=0",)
SELF = (
    "distill.base_url=self",
    "distill.gold=add",
    "distill.round_questions=1000",
    "distill.sampled_answers=3",
    "evaluate.sampling_temperature=1.0",
)
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
    Rung("16 per schema", "16 questions per schema in a row", ("train.questions_per_schema=16",)),
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
    *(
        Rung(name, f"quantized to {name}", (f"convert.quantization={name}",))
        for name in ("Q5_0", "Q4_1", "Q4_0", "Q4_K_M")
    ),
    Rung("bound", "names bound to the schema", (), reading="bound_strict"),
    Rung(
        "repair",
        "asked again with the database's error message",
        ("evaluate.repair_attempts=1",),
        "bound",
        reading="bound_strict",
    ),
    Rung(
        "vote",
        "a vote of 9 answers, with names bound",
        ("evaluate.sampled_answers=8", "evaluate.sampling_temperature=1.0", "evaluate.sampling_min_p=0.1"),
        "bound",
        reading="voted_strict",
    ),
    Rung("grammar", "only the schema's names in decoding", ("evaluate.grammar=names",)),
    Rung(
        "grammar, bound",
        "the same, and names bound",
        ("evaluate.grammar=names",),
        "bound",
        reading="bound_strict",
    ),
    Rung(
        "canonical, grammar",
        "canonical SQL, and only the schema's names in decoding",
        ("preprocess.sql_form=canonical", "evaluate.grammar=names"),
        "canonical",
    ),
    Rung("self", "trained again on its own right answers, of 4 each to 1,000 questions", SELF, "2 epochs"),
    Rung(
        "self, unsure",
        "only those to questions that it answers right sometimes",
        (*SELF, "distill.only_unsure=true"),
        "self",
    ),
    Rung(
        "self twice",
        "trained a third time, on the answers of the second student",
        (*SELF, "distill.rounds=2"),
        "4 epochs",
    ),
    Rung("base, whole", "the base, zero-shot, all of Spider", BASE_ALONE, "", "base", is_whole=True),
    Rung(
        "no schema, whole",
        "without schema, one epoch of all of Spider",
        ("preprocess.schema=none",),
        "base, whole",
        is_whole=True,
    ),
    Rung("ddl, whole", "with DDL, one epoch of all of Spider", (), "no schema, whole", is_whole=True),
    Rung("bound, whole", "the same, names bound", (), "ddl, whole", reading="bound_strict", is_whole=True),
)


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
    """Run a rung; see `result_of`.

    Seconds are those of this call: steps that an earlier rung or an interrupted ladder has finished take none.
    """
    score = () if rung.system == "base" else ONLY_STUDENT
    part = () if rung.is_whole else SUBSET
    settings = (f"preprocess.source={spider}", *part, *score, *rung.settings)
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
    outcome = json.loads(outcomes[-1].read_bytes())
    candidate = Path(outcome["candidate_uri"].removeprefix("file://"))
    return result_of(rung, Path(outcome["report"]).parent, candidate, seconds)


def result_of(rung: Rung, report: Path, candidate: Path, seconds: int) -> dict[str, Any]:
    """What is kept of a rung in ladder.json.

    Args:
        rung: the rung.
        report: folder of its report.
        candidate: candidate.json or manifest.json of its student.
        seconds: its wall-clock time.
    """
    score = json.loads((report / "report.json").read_bytes())["systems"][rung.system]
    return {
        "settings": list(rung.settings),
        "seconds": seconds,
        "milliseconds": round(1000 * score["speed"]["latency"][0]),
        "fallbacks": len(json.loads(candidate.read_bytes())["fallbacks"]),
        "questions": score["strict"]["total"],
        "right": right_in(report / "items.jsonl", rung.system, rung.reading),
        "right_if_bound": right_in(report / "items.jsonl", rung.system, "bound_strict"),
    }


def right_in(items: Path, system: str, reading: Reading) -> list[str]:
    """The ids of the scored questions of a report's items.jsonl that are right."""
    found = map(json.loads, items.read_text("utf-8").splitlines())
    scored = (item for item in found if item.get("system", "student") == system)
    # An answer that was not repaired, or on which all agree, has no second verdict.
    return [
        item["id"] for item in scored if not {*NOT_SCORED} & {*item["reasons"]} and item.get(reading, item["strict"])
    ]


def write_table(measured: Mapping[str, Any]) -> None:
    """Replace the table between the markers of docs/accuracy.md."""
    text = DOCUMENT.read_text("utf-8")
    before, rest = text.split(START)
    DOCUMENT.write_text(
        before + START + "".join(f"{row}\n" for row in table(measured)) + END + rest.split(END)[1], "utf-8"
    )


def table(measured: Mapping[str, Any]) -> Iterable[str]:
    """The table's lines, in Markdown."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for rung in RUNGS:
        if rung.name not in measured:
            yield f"| {rung.name} | {rung.title} | not measured | | | {rung.below} | | | | |"
            continue
        yield f"| {' | '.join([rung.name, *_cells(rung, measured[rung.name], measured.get(rung.below))])} |"


def _cells(rung: Rung, own: Mapping[str, Any], below: Mapping[str, Any] | None) -> Iterable[str]:
    right, total, fallbacks = len(own["right"]), own["questions"], own["fallbacks"]
    low, high = wilson_interval(right, total)
    yield rung.title + (f" (tensors that need another type: {fallbacks})" if fallbacks else "")
    yield f"{right} of {total}"
    yield f"{right / total:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
    yield f"{len(own['right_if_bound']) / total:.1%}"
    yield rung.below
    yield from _compared(own, below) if below and below["questions"] == total else ("", "")
    yield f"{own['seconds']:,}"
    yield f"{own['milliseconds']:,}"


def _compared(own: Mapping[str, Any], below: Mapping[str, Any]) -> tuple[str, str]:
    """The difference to another rung in points, and McNemar's p-value; both have the same questions."""
    gained, lost = len({*own["right"]} - {*below["right"]}), len({*below["right"]} - {*own["right"]})
    p_value = mcnemar_p_value(gained, lost)
    return f"{100 * (gained - lost) / own['questions']:+.1f}", "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


if __name__ == "__main__":
    main()
