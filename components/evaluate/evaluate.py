"""Evaluation of systems on the same questions: prediction files, a served student and its base, remote models."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.judge import Judgement
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.prediction_files import read_gold, read_predictions
from chatmetrics.components.evaluate.predictions import (
    Prediction,
    question_keys,
    write_records,
)
from chatmetrics.components.evaluate.questions import (
    TRAINING,
    NotAsked,
    few_shot_for,
    few_shot_sentence,
    load_questions,
    load_training_data,
    settings_for_questions,
    warn_missing,
)
from chatmetrics.components.evaluate.sampling import sample, spread
from chatmetrics.components.evaluate.score import Item, Missing, ScoredAnswer, score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.evaluate.teacher_answers import TEACHER, teacher_answers
from chatmetrics.components.nl2sql.databases.databases import Databases, open_databases
from chatmetrics.components.nl2sql.descriptions import KnownDatabases, read_descriptions
from chatmetrics.components.nl2sql.example import read_examples, read_held_out
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate, dataset_template
from chatmetrics.components.storage.files import atomic_file

# Scoring prediction files needs neither a client nor a store, and the report is not needed before there are scores: the
# functions below import what they use, so that scoring begins early.
if TYPE_CHECKING:
    from chatmetrics.components.evaluate.report import Report
    from chatmetrics.components.nl2sql.acceptance_test import AcceptanceScore
    from chatmetrics.components.nl2sql.schema import Schema

STUDENT, BASE = "student", "base"
BOUND_FIELDS = ("bound", "repairs")
NOT_DRAWN = "not-drawn.jsonl"  # read by distill


def evaluate(
    settings: EvaluateSettings,
    dataset: Path,
    databases: str,
    student: Path,
    base: Path | None,
    output: Path,
    loss: Path | None,
    chose_adapter: Collection[str] = (),
    answers: str = "",
) -> "Report":
    """Ask the models the questions of dev.jsonl and of held-out sets, run gold and predicted SQL, and write a report.

    If the dataset holds the teacher's answers to these questions, they are scored too. If `settings.questions` is
    "train", each distinct question of train.jsonl is asked instead, and there is no gate.

    Args:
        settings: how the models are asked, and the gate.
        dataset: folder that preprocess or distill wrote.
        databases: see `located_databases`.
        student: GGUF file; see `gguf_template` for the template of its prompts.
        base: GGUF file; the base is not scored if it is None or `score_base` is off.
        output: folder for the report (see `write_report`), predictions-<system>.jsonl and the student's acceptance test
            (see `draw_acceptance_test`).
        loss: PNG of the loss curve, for the report.
        chose_adapter: ids of the questions that chose the student's adapter; they do not count for the gate.
        answers: folder or s3:// URI that keeps the models' answers as they come. An attempt that is repeated asks only
            the missing questions. Empty keeps them in `output` until the report is written.

    Returns:
        The report. `passed` tells whether the gate was passed; failing it is not an error here.

    Raises:
        InputError: the dataset or a database cannot be used, the gate's split has no questions, or the gate needs the
            teacher's answers and there are none.
        ServiceError: a model cannot be served.
        StorageError: the output cannot be written.
    """
    from chatmetrics.components.evaluate.acceptance_test import draw_acceptance_test
    from chatmetrics.components.evaluate.answers import AskedSystem, answer_log, ask_gguf

    settings, known = settings_for_questions(settings), read_descriptions(dataset)
    with (
        _located(dataset, databases, settings) as where,
        open_databases(where, settings.query_seconds, known) as opened,
    ):
        asked = load_questions(dataset, opened, settings)
        examples = asked.all()
        teacher = teacher_answers(dataset, asked.examples, settings)
        training = load_training_data(dataset, settings)
        models = {STUDENT: (student, examples, settings.sampled_answers)}
        if base and settings.score_base:
            models[BASE] = (base, asked.all(settings.base_limit), 0)
        shots = {name: few_shot_for(name, dataset, settings) for name in models}
        predictions, logs, templates = {}, [], {}
        for name, (gguf, questions, sampled) in models.items():
            template = templates[name] = gguf_template(gguf, dataset)
            with answer_log(gguf, output, answers) as log:
                system = AskedSystem(name, template, settings, log, opened, shots[name])
                predictions[name] = ask_gguf(system, gguf, questions, sampled)
            logs.append(log)
        if teacher:
            predictions[TEACHER] = teacher
        for name, found in predictions.items():
            write_records(output / f"predictions-{name}.jsonl", (answer.fields for answer in found))
        if settings.questions == TRAINING:
            # distill must not take a question that the student was not asked for one that it fails.
            left_out = ({"db_id": example.db_id, "question": example.question} for example in asked.not_drawn)
            write_records(output / NOT_DRAWN, left_out)
        items, broken = score(predictions, opened, training, partial(_prepare_report, len(predictions)))
        for name in predictions:
            _write_bound(output / f"predictions-{name}.jsonl", items, name)
        items = [
            replace(item, chose_adapter=item.id in chose_adapter, held_out=item.split in asked.held_out)
            for item in items
        ]
        missing = _with_broken(asked.missing, broken)
        test_score = draw_acceptance_test(
            *(examples, items, STUDENT, where, settings, output, templates[STUDENT], known), opened
        )
        about = student.stem if settings.questions == "dev" else f"{student.stem} on training questions"
        few_shot = few_shot_sentence(models, settings)
        report = write_report(
            about,
            items,
            missing,
            settings,
            opened,
            output,
            loss,
            test_score,
            asked.not_asked,
            few_shot,
            templates,
            asked.held_out_not_asked,
        )
    for log in logs:
        log.delete()
    return report


def evaluate_endpoint(
    settings: EvaluateSettings, dataset: Path, databases: str, endpoint: str, model: str, output: Path
) -> "Report":
    """Ask a remote model every question of dev.jsonl and report. An interrupted run resumes with the missing ones.

    Args:
        settings: how the model is asked.
        dataset: folder that preprocess wrote.
        databases: see `located_databases`.
        endpoint: base URL of Ollama, llama.cpp's server or, if it ends in /v1, a server of OpenAI's protocol.
        model: the model's name at the endpoint.
        output: folder for the report and predictions-<model>.jsonl, which can be compared with other systems.

    Raises:
        InputError: the dataset or a database cannot be used.
        ServiceError: the endpoint is not available, or refused; the answers so far are kept for the next run.
        StorageError: the output cannot be written.
    """
    from chatmetrics.components.evaluate.answer_log import AnswerLog
    from chatmetrics.components.evaluate.answers import AskedSystem, ask_endpoint, connect

    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in model) or "model"
    if settings.gate_teacher is not None or settings.sampled_answers or settings.grammar != "none":
        raise InputError(
            "evaluate.gate_teacher, evaluate.sampled_answers and evaluate.grammar need a student as a GGUF file: "
            "name one with --student, or remove these settings"
        )
    # There is no other model, whatever this one is called.
    settings = settings_for_questions(settings).model_copy(update={"few_shot_for": "both"})
    with (
        _located(dataset, databases, settings) as where,
        open_databases(where, settings.query_seconds, read_descriptions(dataset)) as opened,
    ):
        asked = load_questions(dataset, opened, settings)
        training = load_training_data(dataset, settings)
        template = dataset_template(dataset)
        client = connect(endpoint, model, template)
        with AnswerLog(output / f"answers-{name}.partial.jsonl", f"{endpoint} {model}") as log:
            system = AskedSystem(name, template, settings, log, opened, few_shot_for(name, dataset, settings))
            answers = ask_endpoint(system, client, asked.all())
        write_records(output / f"predictions-{name}.jsonl", (answer.fields for answer in answers))
        items, broken = score({name: answers}, opened, training, partial(_prepare_report, 1))
        _write_bound(output / f"predictions-{name}.jsonl", items, name)
        items = [replace(item, held_out=item.split in asked.held_out) for item in items]
        missing = _with_broken(asked.missing, broken)
        few_shot = few_shot_sentence([name], settings)
        report = write_report(
            name,
            items,
            missing,
            settings,
            opened,
            output,
            not_asked=asked.not_asked,
            few_shot=few_shot,
            held_out_not_asked=asked.held_out_not_asked,
        )
    log.delete()
    return report


def evaluate_predictions(
    settings: EvaluateSettings,
    files: Mapping[str, Path],
    databases: str,
    output: Path,
    training: Sequence[Path] = (),
    gold: Path | None = None,
    dataset: Path | None = None,
) -> "Report":
    """Score existing prediction files, without a model.

    Args:
        settings: verdict, sample, limits and prices.
        files: one file per system, by the system's name in the report.
        databases: a folder of SQLite files, or an SQLAlchemy URL.
        output: folder for the report, see `write_report`.
        training: files that the systems may have been trained on.
        gold: file with the questions that files without gold queries are about, see `read_gold`.
        dataset: folder that preprocess wrote, from which private columns are known.

    Raises:
        InputError: a file or all databases cannot be used, or the gate needs a teacher and no file is named "teacher".
        StorageError: the output cannot be written.
    """
    if settings.gate_teacher is not None and TEACHER not in list(files)[1:]:
        raise InputError(
            "evaluate.gate_teacher is set, but no file after the first holds the teacher's predictions: "
            f"name it with --predictions {TEACHER}=FILE"
        )
    settings = settings.model_copy(update={"grammar": "none"})  # of answers that exist
    asked = read_gold(gold) if gold else None
    predictions = {name: read_predictions(path, asked) for name, path in files.items()}
    seen = TrainingData.read(*training) if training else None
    known = read_descriptions(dataset) if dataset else KnownDatabases({})
    with open_databases(databases, settings.query_seconds, known) as opened:
        items, missing = score(
            _sampled(predictions, settings), opened, seen, partial(_prepare_report, len(predictions))
        )
        warn_missing(missing)
        return write_report(", ".join(files), items, missing, settings, opened, output)


def write_report(
    name: str,
    items: Sequence[Item],
    missing: Missing,
    settings: EvaluateSettings,
    databases: Databases,
    output: Path,
    loss: Path | None = None,
    acceptance_test: "AcceptanceScore | None" = None,
    not_asked: NotAsked | None = None,
    few_shot: str = "",
    templates: Mapping[str, PromptTemplate] | None = None,
    held_out_not_asked: NotAsked | None = None,
) -> "Report":
    """Write report.json, report.md, report.html and items.jsonl, print the headline, and return the report.

    items.jsonl has one line per item and system, in the order of the predictions. A line has the fields of the
    prediction and `official`, `strict`, `bird`, `failure`, `reasons`, `query_types` and `hardness`. With several
    systems it also has `system`; with sampled answers it also has `agreement`, the share of them that return the same
    result as the greedy answer. If a name of the query did not resolve and could be repaired, it also has `bound`, the
    repaired query, `repairs` and `bound_official`, `bound_strict` and `bound_bird`; with sampled answers `voted`
    and its verdicts.

    Raises:
        InputError: there are no questions, or none could be scored; the report is written in the latter case.
        StorageError: a file cannot be written.
    """
    from chatmetrics.components.evaluate.page import draw_schemas, html_report, markdown_report
    from chatmetrics.components.evaluate.report import summarize

    if not items:
        raise InputError("there are no questions to evaluate")
    report = summarize(name, items, missing, settings, acceptance_test, not_asked, few_shot, held_out_not_asked)
    report.templates = {system: template.name for system, template in (templates or {}).items()}
    several = len(report.systems) > 1
    write_records(
        output / "items.jsonl",
        (_record(item, system, several) for system in report.systems for item in _in_order(items, system)),
    )
    # The numbers first: they must not be lost if a page cannot be rendered.
    _write_text(output / "report.json", report.model_dump_json(indent=2))
    _write_text(output / "report.md", markdown_report(report))
    ddl, schemas = _schemas(databases, dict.fromkeys(item.db_id for item in items if not item.lacks_database))
    _write_text(output / "report.html", html_report(report, items, loss, ddl, draw_schemas(schemas)))
    console.info(report.headline)
    if not any(score.strict.total for score in report.systems.values()):
        raise InputError(f"no question could be scored: {'; '.join(report.caveats)}; see {output / 'report.html'}")
    return report


def _with_broken(missing: Missing, broken: Missing) -> Missing:
    """Add the databases that turned out to be broken when queries were run."""
    warn_missing(broken)
    return {**missing, **broken}


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def _schemas(databases: Databases, db_ids: Iterable[str]) -> "tuple[dict[str, str], dict[str, Schema]]":
    """The schemas to show on the page, as DDL and to be drawn; one that cannot be read is left out."""
    ddl, schemas = {}, {}
    for db_id in db_ids:
        try:
            ddl[db_id], schemas[db_id] = databases.schema(db_id), databases.structure(db_id)
        except InputError as error:
            console.warning(f"the page does not show the schema of the database {db_id!r}: {error}")
    return ddl, schemas


def _prepare_report(systems: int) -> None:
    """Import what the report needs, while the scoring processes are busy."""
    from chatmetrics.components.evaluate import page

    page.prepare()
    if systems > 1:
        import numpy  # noqa: F401 (the intervals of their differences use it)


def _located(dataset: Path, databases: str, settings: EvaluateSettings) -> AbstractContextManager[str]:
    """Provide the databases of the questions that are asked."""
    from chatmetrics.components.storage.dataset_databases import located_databases

    examples = read_examples(dataset / f"{settings.questions}.jsonl")
    if settings.questions != TRAINING:
        examples += read_held_out(dataset)
    asked = {example.db_id for example in examples}
    return located_databases(dataset, databases, asked.__contains__, held_out=True)


def fetch_model(manifest_uri: str, folder: Path) -> Path:
    """Fetch a published model to `folder` and return its GGUF file.

    Raises:
        InputError: the model has no GGUF file, or several.
        StorageError: a file is missing or damaged.
    """
    from chatmetrics.components.storage.manifest import fetch, weights_of

    return folder / weights_of(fetch(manifest_uri, folder), manifest_uri).name


def gguf_template(gguf: Path, dataset: Path) -> PromptTemplate:
    """The template of a model's prompts: the one in its manifest, or else the dataset's.

    Raises:
        InputError: the manifest or the dataset names no template that can be read.
        StorageError: the manifest is malformed.
    """
    from chatmetrics.components.storage.manifest import manifest_of

    manifest = manifest_of(gguf)
    if manifest and manifest.prompt_template:
        return PromptTemplate.parse(manifest.prompt_template)
    template = dataset_template(dataset)
    console.note(f"{gguf.name} has no manifest next to it: its prompts have the dataset's template, {template.name}")
    return template


def _in_order(items: Sequence[Item], system: str) -> list[Item]:
    """The questions of one system, in the order of its predictions."""
    own = [item for item in items if system in item.answers]
    return sorted(own, key=lambda item: item.answers[system].prediction.number)


def _write_bound(path: Path, items: Sequence[Item], system: str) -> None:
    """Write the predictions again, with the queries whose names were bound and their repairs."""
    write_records(path, (_fields(item.answers[system]) for item in _in_order(items, system)))


def _fields(answer: ScoredAnswer) -> dict[str, object]:
    """A prediction's fields, with its bound query. Those that the prediction had before are not kept."""
    fields = {name: value for name, value in answer.prediction.fields.items() if name not in BOUND_FIELDS}
    if answer.bound is None:
        return fields
    repairs = [{"kind": repair.kind, "message": repair.message} for repair in answer.bound.repairs]
    return {**fields, **dict(zip(BOUND_FIELDS, (answer.bound.sql, repairs), strict=True))}


def _verdicts(name: str, judgement: Judgement) -> dict[str, bool]:
    return {f"{name}_{verdict}": getattr(judgement, verdict) for verdict in ("official", "strict", "bird")}


def _record(item: Item, system: str, several: bool) -> dict[str, object]:
    answer = item.answers[system]
    judgement = answer.judgement
    bound, voted = answer.bound, answer.voted
    return {
        **({"system": system} if several else {}),
        **_fields(answer),
        "official": judgement.official,
        "strict": judgement.strict,
        "bird": judgement.bird,
        "failure": judgement.failure,
        "reasons": judgement.reasons,
        "query_types": item.query_types,
        "hardness": item.hardness,
        **(_verdicts("bound", bound.judgement) if bound else {}),
        **({"voted": voted.sql, **_verdicts("voted", voted.judgement)} if voted else {}),
        **({} if answer.agreement is None else {"agreement": answer.agreement}),
    }


def _sampled(
    predictions: Mapping[str, Sequence[Prediction]], settings: EvaluateSettings
) -> dict[str, list[Prediction]]:
    """The predictions for the sampled questions, which are the same for every system."""
    keys = {system: question_keys(answers) for system, answers in predictions.items()}
    every = list(dict.fromkeys(key for found in keys.values() for key in found))
    drawn = set(spread(sample(every, lambda key: key[2], settings.sample, settings.seed), settings.limit))
    return {
        system: [answer for key, answer in zip(keys[system], answers, strict=True) if key in drawn]
        for system, answers in predictions.items()
    }
