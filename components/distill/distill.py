"""Turns a dataset and a teacher into the dataset that the student is trained on."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from chatmetrics.components import console
from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.distill.answers.selection import StudentFormat, select
from chatmetrics.components.distill.answers.verification import verify
from chatmetrics.components.distill.answers.verified import SampleCounts, Verified
from chatmetrics.components.distill.distilled_dataset import Distillation, check_output, write_distilled_dataset
from chatmetrics.components.distill.session import Session, open_session
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.student_report import failing, own_samples
from chatmetrics.components.distill.synthesis.one_database import DatabaseReport
from chatmetrics.components.distill.synthesis.synthesis import HELD_OUT, TRAIN, synthesize
from chatmetrics.components.distill.teacher_score import score_teacher
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.sql.canonical import canonical
from chatmetrics.components.storage.folder import atomic_folder


def distill(
    settings: DistillSettings,
    dataset: Path,
    output: Path,
    ledger_uri: str,
    databases: str = "",
    answers: Path | None = None,
    round_number: int = 1,
) -> Distillation:
    """Ask the teacher, verify its answers, and write the dataset that the student is trained on to `output`.

    An interrupted run sends only the requests that are still unanswered. Changing the verification or selection
    settings sends no requests. If the student is its own teacher, nobody is asked: the answers are those in a report.

    Args:
        settings: the recipe's `distill` section.
        dataset: folder that preprocess wrote.
        output: folder for the new dataset; replaces an older one once everything is written.
        ledger_uri: folder or s3:// prefix of the ledger of answers and costs; later runs reuse it.
        databases: see `located_databases`.
        answers: folder of a report on a student's answers to the training questions; from the second round on.
        round_number: number of the round, from 1.

    Raises:
        InputError: no teacher is configured, the dataset or a database cannot be used, or a cap was reached and
            `at_cap` is "fail".
        ServiceError: the teacher does not answer; the answers received so far are kept.
        StorageError: the ledger or the output cannot be written.
    """
    check_output(output, dataset)
    with open_session(settings, dataset, databases, ledger_uri) as session:
        # Read before any request, so that an invalid file costs nothing.
        unlabeled, student = session.unlabeled, session.student
        scored = score_teacher(session) if settings.scores_teacher else []
        generated, coverage = _synthesize(session)
        questions = [*session.train, *unlabeled, *generated]
        if settings.is_self:
            samples, asked = _own(answers, questions)
        else:
            failed = failing(answers, settings, questions) if answers else None
            samples, asked = _samples(session, questions, failed, round_number)
            _check_unanswered(session)
        verified = verify(questions, samples, session.databases, settings)
        student = replace(session.student, execute=session.databases.execute)
        trained_on = [item for item in verified if item.is_unsure or not settings.only_unsure]
        chosen, selected = select(trained_on, _for_round(settings, round_number), student)
        dev = [*session.dev, *_held_out(student, coverage, generated, verified)]
        origins = _origins(session.train, unlabeled, generated)
        train = _with_gold(session.train, chosen, settings)
        train = [example for example in train if example.split == TRAIN]
        count = len(session.train) + len(unlabeled)
        distillation = Distillation(
            teacher=settings.model or settings.base_url,
            verification=settings.verification,
            round=round_number,
            asked=asked,
            examples=_count_origins(train, chosen, origins),
            counts=SampleCounts.of(verified[:count], settings.verification),
            synthesized=SampleCounts.of(verified[count:], settings.verification) if generated else None,
            selected=selected,
            coverage=coverage,
            not_sent=session.result.not_sent,
            unanswered=dict(session.result.unanswered),
            spending=session.ledger.spending(),
        )
        if not train:
            raise InputError(f"nothing is left to train on: {distillation.summary}")
        with atomic_folder(output.absolute()) as folder:
            write_distilled_dataset(folder, dataset, train, dev, scored, distillation, session.ledger)
    if selected.not_rewritten:
        console.warning(f"distill: {selected.not_rewritten} of {selected.examples} answers are the query as given")
    console.info(f"distill: {distillation.summary}")
    return distillation


def _synthesize(session: Session) -> tuple[list[Example], dict[str, DatabaseReport]]:
    """The questions that the teacher generates, and a report by database."""
    if not session.settings.synthesis.questions_per_database:
        return [], {}
    return synthesize(
        session.where,
        [*session.train, *session.dev, *session.held_out, *session.unlabeled],
        lambda requests: session.ask(requests, "generating questions"),
        session.settings,
        hold_out=not session.dev,
        descriptions=session.descriptions,
        count_tokens=session.count_tokens,
    )


def _own(answers: Path | None, questions: Sequence[Example]) -> tuple[list[Sample], int]:
    """The student's own answers as samples, and the number of questions that it was asked."""
    if answers is None:
        raise InputError(
            "distill.base_url is self: give the report on the student's answers to the training questions, which "
            "`chatmetrics evaluate` writes with evaluate.questions=train"
        )
    samples = own_samples(answers, questions)
    return samples, len({sample.question.id for sample in samples})


def _samples(
    session: Session, questions: Sequence[Example], failing: Collection[str] | None, round_number: int
) -> tuple[list[Sample], int]:
    """Ask this round's questions; returns the samples of all rounds so far, and the number of questions asked now."""
    settings = session.settings
    chosen = {question.id for question in session.of_first_round(questions)} if failing is None else failing
    known = [question for question in questions if session.has_schema(question)]
    asked = [question for question in known if question.id in chosen]
    requests = [request for question in asked for _, request in session.requests(question, round_number)]
    session.ask(requests, "asking the teacher")
    samples = [
        Sample.of(question, number, session.ledger.answers[key])
        for question in known
        for earlier in range(1, round_number + 1)
        for number, request in session.requests(question, earlier)
        if (key := request.key(settings)) in session.ledger.answers
    ]
    return samples, len(asked)


def _check_unanswered(session: Session) -> None:
    # The ledger may also have many answers of other runs.
    unanswered, wanted = session.result.unanswered.total(), session.result.wanted
    if unanswered > session.settings.max_unanswered * wanted:
        raise ServiceError(
            f"{unanswered} of {wanted} requests to {session.settings.base_url} have no answer, more than "
            f"distill.max_unanswered ({session.settings.max_unanswered:.0%}); the answers received so far are kept, "
            "run again"
        )


def _for_round(settings: DistillSettings, round_number: int) -> DistillSettings:
    """The settings with `keep_samples` raised: each round adds as many samples, so each may add as many examples.

    A student's own samples are only those of the last round.
    """
    if settings.is_self:
        return settings
    return settings.model_copy(update={"keep_samples": settings.keep_samples * round_number})


def _with_gold(gold: Sequence[Example], chosen: Sequence[Example], settings: DistillSettings) -> list[Example]:
    """The training examples: the chosen samples, plus the gold examples that the setting `gold` asks for."""
    has_sample = {example.id for example in chosen}
    if settings.gold == "never":
        return list(chosen)
    if settings.gold == "fallback":
        return [*(example for example in gold if example.id not in has_sample), *chosen]
    same = {(example.db_id, example.question, canonical(example.output)) for example in chosen}
    added = [
        replace(example, id=f"{example.id}#gold") if example.id in has_sample else example
        for example in gold
        if (example.db_id, example.question, canonical(example.output)) not in same
    ]
    return [*added, *chosen]


def _held_out(
    student: StudentFormat,
    coverage: dict[str, DatabaseReport],
    generated: Sequence[Example],
    verified: Sequence[Verified],
) -> Iterator[Example]:
    """The held-out generated questions whose SQL is confirmed by another sample, with a schema that fits."""
    if not coverage:
        return
    passing = {item.question.id for item in verified if item.passing}
    for example in generated:
        if example.split != HELD_OUT or example.id not in passing:
            continue
        example = replace(example, output=student.answer(example.db_id, example.sql).text)
        if not student.form:
            yield example
            continue
        if fitted := student.fitted(example):
            yield fitted


def _origins(train: Sequence[Example], unlabeled: Sequence[Example], generated: Sequence[Example]) -> dict[str, str]:
    groups = {"teacher": train, "unlabeled questions": unlabeled, "synthesized": generated}
    return {example.id: name for name, examples in groups.items() for example in examples}


def _count_origins(train: Sequence[Example], chosen: Sequence[Example], origins: dict[str, str]) -> dict[str, int]:
    from_teacher = {example.id for example in chosen}
    counts = dict.fromkeys(("gold", "teacher", "unlabeled questions", "synthesized"), 0)
    for example in train:
        # Additional examples of a question have the ids ID#2, ID#3 and so on.
        question = example.id if example.id in origins else example.id.rpartition("#")[0]
        counts[origins[question] if example.id in from_teacher else "gold"] += 1
    return counts
