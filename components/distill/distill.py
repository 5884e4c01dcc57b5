"""From a dataset and a teacher to the dataset that the student learns from."""

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.distill.answers.selection import select
from chatmetrics.components.distill.answers.verification import verify
from chatmetrics.components.distill.answers.verified import SampleCounts, Verified
from chatmetrics.components.distill.distilled_dataset import Distillation, check_output, write_distilled_dataset
from chatmetrics.components.distill.scripted.server import MODEL
from chatmetrics.components.distill.session import Session, open_session
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.synthesis.one_database import DatabaseReport
from chatmetrics.components.distill.synthesis.synthesis import HELD_OUT, TRAIN, synthesize
from chatmetrics.components.distill.teacher_score import score_teacher
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.databases import open_databases
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.fitting import fit
from chatmetrics.components.storage.folder import atomic_folder

STUDENT = "student"  # what evaluate calls it in a report on several systems


def distill(
    settings: DistillSettings,
    dataset: Path,
    output: Path,
    ledger_uri: str,
    databases: str = "",
    answers: Path | None = None,
    round_number: int = 1,
) -> Distillation:
    """Ask the teacher, check its answers, and write the dataset that the student learns from to `output`.

    A run that was interrupted asks only for what is missing; other settings of verification or selection ask nothing.

    Args:
        settings: the recipe's section.
        dataset: folder that preprocess wrote.
        output: folder for the new dataset, in place of an older one; until all is written it stays as it was.
        ledger_uri: folder or s3:// prefix of answers and payments; it outlives the run.
        databases: see `located_databases`.
        answers: folder of a report on how a student did in the training questions, from the second round on.
        round_number: from 1.

    Raises:
        InputError: no teacher is named, the dataset or a database cannot be used, or a cap is reached that must not be.
        ServiceError: the teacher does not answer; what it answered is kept.
        StorageError: the ledger or the output cannot be written.
    """
    check_output(output, dataset)
    with open_session(settings, dataset, databases, ledger_uri) as work:
        own = work.own  # read before anything is paid for, so that a wrong file costs nothing
        scored = score_teacher(work) if settings.score_teacher else []
        made_up, coverage = _make_up(work)
        questions = [*work.train, *own, *made_up]
        failing = _failing(answers, settings, questions) if answers else None
        samples, asked = _samples(work, questions, failing, round_number)
        _check_missing(work)
        with open_databases(str(work.databases), settings.query_seconds) as opened:
            verified = verify(questions, samples, opened, settings)
        taught, selected = select(verified, _for_round(settings, round_number), work.student)
        origins = _origins(work.train, own, made_up)
        train = _with_gold(work.train, taught, settings)
        dev = [*work.dev, *_held_out(work, coverage, made_up, verified)]
        train = [example for example in train if example.split == TRAIN]
        distillation = Distillation(
            teacher=settings.model or MODEL,
            verification=settings.verification,
            round=round_number,
            asked=asked,
            examples=_count_origins(train, taught, origins),
            counts=SampleCounts.of(verified[: len(work.train) + len(own)], settings.verification),
            synthesized=SampleCounts.of(verified[len(work.train) + len(own) :], settings.verification)
            if made_up
            else None,
            selected=selected,
            coverage=coverage,
            not_sent=work.asked.not_sent,
            unanswered=dict(work.asked.unanswered),
            spending=work.ledger.spending(),
        )
        if not train:
            raise InputError(f"nothing is left to train on: {distillation.summary}")
        with atomic_folder(output.absolute()) as folder:
            write_distilled_dataset(folder, dataset, train, dev, scored, distillation, work.ledger)
    print(f"distill: {distillation.summary}", file=sys.stderr, flush=True)
    return distillation


def _make_up(work: Session) -> tuple[list[Example], dict[str, DatabaseReport]]:
    """Questions that the teacher makes up."""
    if not work.settings.synthesis.questions_per_database:
        return [], {}
    return synthesize(
        work.databases,
        [*work.train, *work.dev, *work.own],
        lambda requests: work.ask(requests, "having questions made up"),
        work.settings,
        hold_out=not work.dev,
    )


def _failing(answers: Path, settings: DistillSettings, questions: Sequence[Example]) -> set[str]:
    """The questions that a student fails, is unsure of, or was not trained on, by id."""
    path = answers / "items.jsonl"
    try:
        items = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        fine = {
            (item["db_id"], item["question"])
            for item in items
            if item.get("system", STUDENT) == STUDENT
            and item["strict"]
            and item.get("agreement", 1.0) >= settings.min_student_agreement
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a report on a student's answers ({error})") from error
    failing = {question.id for question in questions if (question.db_id, question.question) not in fine}
    print(f"distill: the student fails or is unsure in {len(failing)} of {len(questions)} questions", file=sys.stderr)
    return failing


def _samples(
    work: Session, questions: Sequence[Example], failing: Collection[str] | None, round_number: int
) -> tuple[list[Sample], int]:
    """All samples that there are after this round's are asked for, and how many questions that concerned."""
    settings = work.settings
    chosen = {question.id for question in work.of_first_round(questions)} if failing is None else failing
    known = [question for question in questions if work.has_schema(question)]
    asked = [question for question in known if question.id in chosen]
    now = [request for question in asked for _, request in work.requests(question, round_number)]
    work.ask(now, "asking the teacher")
    samples = [
        Sample.of(question, number, work.ledger.answers[key])
        for question in known
        for earlier in range(1, round_number + 1)
        for number, request in work.requests(question, earlier)
        if (key := request.key(settings)) in work.ledger.answers
    ]
    return samples, len(asked)


def _check_missing(work: Session) -> None:
    given_up, answered = sum(work.asked.unanswered.values()), len(work.ledger.answers)
    if given_up > work.settings.max_unanswered * (given_up + answered):
        raise ServiceError(
            f"{given_up} requests to {work.settings.base_url} have no answer, more than distill.max_unanswered "
            f"({work.settings.max_unanswered:.0%}); what was answered is kept, run again"
        )


def _for_round(settings: DistillSettings, round_number: int) -> DistillSettings:
    """A question that needed several rounds may have as many more examples."""
    return settings.model_copy(update={"keep_samples": settings.keep_samples * round_number})


def _with_gold(gold: Sequence[Example], taught: Sequence[Example], settings: DistillSettings) -> list[Example]:
    """The examples to train on, with those of the gold queries that the settings want."""
    has_sample = {example.id for example in taught}
    if settings.gold == "never":
        return list(taught)
    if settings.gold == "fallback":
        return [*(example for example in gold if example.id not in has_sample), *taught]
    same = {(example.db_id, example.question, example.output) for example in taught}
    added = [
        replace(example, id=f"{example.id}#gold") if example.id in has_sample else example
        for example in gold
        if (example.db_id, example.question, example.output) not in same
    ]
    return [*added, *taught]


def _held_out(
    work: Session, coverage: dict[str, DatabaseReport], made_up: Sequence[Example], verified: Sequence[Verified]
) -> Iterator[Example]:
    """Questions that were made up to be held out, of those that another sample of the teacher answers alike."""
    if not coverage:
        return
    passing = {item.question.id for item in verified if item.passing}
    student = work.student
    for example in made_up:
        if example.split == HELD_OUT and example.id in passing:
            schema = student.schema(example.db_id) if student.form else None
            if schema is None or student.form is None:
                yield example
            elif fitted := fit(
                replace(example, system=schema.render(student.form)),
                schema,
                student.form,
                student.cutoff_length,
                student.counter,
            ):
                yield fitted


def _origins(train: Sequence[Example], own: Sequence[Example], made_up: Sequence[Example]) -> dict[str, str]:
    groups = {"teacher": train, "unlabeled questions": own, "synthesized": made_up}
    return {example.id: name for name, examples in groups.items() for example in examples}


def _count_origins(train: Sequence[Example], taught: Sequence[Example], origins: dict[str, str]) -> dict[str, int]:
    from_teacher = {example.id for example in taught}
    counts = dict.fromkeys(("gold", "teacher", "unlabeled questions", "synthesized"), 0)
    for example in train:
        first = example.id if example.id in origins else example.id.rpartition("#")[0]  # further ones are called ID#2
        counts[origins[first] if example.id in from_teacher else "gold"] += 1
    return counts
