"""A model's answers to questions, with the prompt of training and several requests at the same time."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from chatmetrics.components import console
from chatmetrics.components.console import track
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.evaluate.answer_log import AnswerLog
from chatmetrics.components.evaluate.predictions import FAILED_BEFORE, Prediction, TokenUsage, predicted
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.inference.client import CONTEXT_EXCEEDED, Answer, Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.databases.addresses import SQLITE, title
from chatmetrics.components.nl2sql.databases.databases import Databases
from chatmetrics.components.nl2sql.databases.execution import FailureMode
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.name_grammar import name_grammar
from chatmetrics.components.nl2sql.prompts.few_shot import Choose, with_shots
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate
from chatmetrics.components.redaction import one_line
from chatmetrics.components.storage.files import sha256_of

OPENAI_PATH = "/v1"
HASH_DIGITS = 16
CHARACTERS_OF_ERROR = 200
# What is appended to a question whose answer failed.
AGAIN = "\n\nThe query\n{sql}\nfails: {error}\nWrite a query that runs."

Ask = Callable[..., Answer]  # a model's method `ask`, perhaps with some arguments

Task = TypeVar("Task")
Done = TypeVar("Done")


class Model(Protocol):
    """A client of a model: llama.cpp's server, Ollama, or OpenAI's chat protocol."""

    def ask(self, system: str, instruction: str, input: str, max_tokens: int) -> Answer:
        """Answer one question, greedily. Thread-safe."""


def connect(endpoint: str, model: str, template: PromptTemplate) -> Model:
    """A client for an endpoint: OpenAI's protocol if the URL ends in /v1, else Ollama's or llama.cpp's.

    Args:
        endpoint: its URL.
        model: the model's name.
        template: the template of the prompts; with OpenAI's protocol the endpoint uses its own.

    Raises:
        ServiceError: the endpoint does not answer, or does not have the model.
    """
    if endpoint.rstrip("/").endswith(OPENAI_PATH):
        # Imported here because only teachers and remote models need openai.
        from chatmetrics.components.inference.openai_chat import OpenAIChat

        return OpenAIChat(endpoint, model)
    return Client(endpoint, model, template=template)


def answer_log(gguf: Path, output: Path, folder: str) -> AnswerLog:
    """The log of a GGUF file's answers, whose name has the file's hash.

    Args:
        gguf: the model.
        output: folder for the log.
        folder: see `AnswerLog`.

    Raises:
        InputError: the GGUF file does not exist.
    """
    if not gguf.is_file():
        raise InputError(f"{gguf}: no such file; name a GGUF file")
    digest = sha256_of(gguf)
    return AnswerLog(output / f"answers-{digest[:HASH_DIGITS]}.partial.jsonl", digest, folder)


@dataclass(frozen=True, slots=True)
class AskedSystem:
    """A system that is asked, and what all requests to it have in common.

    Attributes:
        name: its name in the report.
        template: the template of its prompts; see `connect`.
        settings: length of an answer, concurrency, grammar, and temperature of sampled answers.
        log: answers of earlier attempts, to which every answer is appended.
        databases: the examples' databases: their names, and their error messages if `repair_attempts` is set.
        shots: chooses the questions that the prompt of an example also shows.
    """

    name: str
    template: PromptTemplate
    settings: EvaluateSettings
    log: AnswerLog
    databases: Databases
    shots: Choose = lambda example: ()


def ask_gguf(
    system: AskedSystem, gguf: Path, examples: Sequence[Example], sampled_answers: int = 0
) -> list[Prediction]:
    """Serve a GGUF file, the one that would be deployed, with llama.cpp and ask it what is not answered in the log yet.

    Prompts show as many of the chosen questions as fit the context.

    Args:
        system: the model.
        gguf: its file.
        examples: the questions.
        sampled_answers: number of answers to each example that are sampled in addition to the greedy one.

    Returns:
        The predictions, in the order of the examples.

    Raises:
        InputError: the GGUF file does not exist.
        ServiceError: the server did not start, or refused a prompt; the answers so far are kept.
        StorageError: the disk is full or not writable.
    """
    template, settings, log = system.template, system.settings, system.log
    chosen = {example.id: system.shots(example) for example in examples}
    # How many of the chosen questions fit depends on the context.
    context = settings.context_length if any(chosen.values()) else 0
    prompts = [with_shots(example, chosen[example.id]) for example in examples]
    keys = [_key(prompt, template, log.model, settings, sampled_answers, context) for prompt in prompts]
    # Without a missing answer, loading the model would take minutes for nothing.
    if missing := _missing(dict(zip(keys, examples, strict=True)), system):
        grammars = _grammars(missing.values(), system)
        with (
            LlamaServer(gguf, settings.context_length, settings.concurrency) as server,
            _ErrorMessages(system.databases, settings) as errors,
        ):
            client = Client(server.endpoint, template=template)

            shortened: list[Example] = []

            def ask(example: Example) -> Prediction:
                fitting = _fitting(client, template, example, chosen[example.id], settings)
                if len(fitting) < len(chosen[example.id]):
                    shortened.append(example)
                prompt = with_shots(example, fitting)
                restricted = partial(client.ask, grammar=grammars.get(example.db_id, ""))
                sampled = _sample_answers(restricted, prompt, settings, sampled_answers)
                return _ask(restricted, prompt, settings.max_tokens, errors, sampled)

            _ask_all(ask, missing, system)
            if shortened:
                console.warning(
                    f"{len(shortened)} of {len(missing)} prompts of the {system.name} show fewer training questions "
                    f"than evaluate.few_shot ({settings.few_shot}), because more do not fit evaluate.context_length"
                )
    return [_prediction_from_log(example, log.answered[key]) for key, example in zip(keys, examples, strict=True)]


def ask_endpoint(system: AskedSystem, model: Model, examples: Sequence[Example]) -> list[Prediction]:
    """Ask a remote model all examples that are not answered in the log yet. Every answer is appended to it.

    Returns:
        The predictions, in the order of the examples.

    Raises:
        ServiceError: the endpoint stopped answering or refused; the answers so far are kept.
        StorageError: the disk is full or not writable.
    """
    settings, log = system.settings, system.log
    prompts = [with_shots(example, system.shots(example)) for example in examples]
    keys = [_key(prompt, system.template, log.model, settings) for prompt in prompts]
    missing = _missing(dict(zip(keys, prompts, strict=True)), system)
    with _ErrorMessages(system.databases, settings) as errors:
        _ask_all(partial(_ask, model.ask, max_tokens=settings.max_tokens, errors=errors), missing, system)
    return [_prediction_from_log(example, log.answered[key]) for key, example in zip(keys, examples, strict=True)]


def _grammars(examples: Iterable[Example], system: AskedSystem) -> dict[str, str]:
    """The grammar of each database's queries, by its name; none if answers are not restricted."""
    if system.settings.grammar == "none":
        return {}
    schemas = {example.db_id: system.databases.structure(example.db_id) for example in examples}
    for name, schema in schemas.items():
        if schema.dialect != SQLITE:
            raise InputError(f"evaluate.grammar permits SQLite's queries only, and {name} is {title(schema.dialect)}'s")
    return {name: name_grammar(schema) for name, schema in schemas.items() if schema.tables}


def _fitting(
    client: Client, template: PromptTemplate, example: Example, shots: Sequence[Example], settings: EvaluateSettings
) -> Sequence[Example]:
    """The last of the shots, as many as fit the context together with the question and an answer."""
    for first in range(len(shots)):
        prompt = with_shots(example, shots[first:])
        tokens = client.count_tokens(template.prompt(prompt.system, prompt.instruction, prompt.input))
        if tokens is not None and tokens + settings.max_tokens <= settings.context_length:
            return shots[first:]
    return ()


def _missing(keys: Mapping[str, Example], system: AskedSystem) -> dict[str, Example]:
    """The examples that are not answered in the log, by key."""
    missing = {key: example for key, example in keys.items() if key not in system.log.answered}
    if len(missing) < len(keys):
        answered = len(keys) - len(missing)
        console.note(f"{answered} of {len(keys)} answers of the {system.name} are from an earlier attempt")
    return missing


def _ask_all(ask: Callable[[Example], Prediction], examples: Mapping[str, Example], system: AskedSystem) -> None:
    """Ask the examples, and append the answers to the log under the examples' keys."""

    def answer(key: str) -> None:
        system.log.append(key, ask(examples[key]).fields)

    for _ in _run_concurrently(answer, list(examples), system.name, system.settings.concurrency):
        pass


def _run_concurrently(
    function: Callable[[Task], Done], tasks: Sequence[Task], system: str, concurrency: int
) -> Iterator[Done]:
    """Yield the results of the tasks, in their order. After an error, no further task is started."""
    pool = ThreadPoolExecutor(concurrency)
    try:
        futures = [pool.submit(function, task) for task in tasks]
        yield from track((future.result() for future in futures), f"asking the {system}", len(tasks), "questions")
    finally:
        pool.shutdown(cancel_futures=True)


def _sample_answers(ask: Ask, example: Example, settings: EvaluateSettings, number: int) -> list[str]:
    """The SQL of `number` sampled answers, with the seeds 1, 2, ..."""
    answers = (
        ask(
            example.system,
            example.instruction,
            example.input,
            settings.max_tokens,
            settings.sampling_temperature,
            seed,
            settings.sampling_min_p,
        )
        for seed in range(1, number + 1)
    )
    return [sql_from_answer(answer.text) for answer in answers]


class _ErrorMessages:
    """Runs queries for their error messages, if a model is to be asked again. Thread-safe."""

    def __init__(self, databases: Databases, settings: EvaluateSettings) -> None:
        self._databases = databases.another() if settings.repair_attempts else None
        self._running = threading.Lock()

    def __enter__(self) -> Self:
        if self._databases:
            self._databases.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._databases:
            self._databases.__exit__(kind, error, trace)

    def of(self, db_id: str, sql: str) -> str:
        """The database's message on a query that fails; empty if it runs or if there is no query."""
        if self._databases is None or not sql:
            return ""
        with self._running:
            [result] = self._databases.execute(db_id, [sql])
            if result.failure == FailureMode.OK:
                return ""
            # A message can contain a value.
            is_shown = result.message and not self._databases.structure(db_id).has_private
        return result.message if is_shown else str(result.failure)


def _ask(
    ask: Ask, example: Example, max_tokens: int, errors: _ErrorMessages, sampled_answers: Sequence[str] = ()
) -> Prediction:
    """Ask a question, and once more if the answer fails; the second answer counts if it runs."""
    answer = ask(example.system, example.instruction, example.input, max_tokens)
    sql = sql_from_answer(answer.text)
    error = errors.of(example.db_id, sql)
    if not error:
        return predicted(example, sql, _usage(answer), sampled_answers)
    # The server has the tokens of the schema and the question in its cache.
    input = example.input + AGAIN.format(sql=sql, error=one_line(error, CHARACTERS_OF_ERROR))
    try:
        again = ask(example.system, example.instruction, input, max_tokens)
    except ServiceError as refused:
        if CONTEXT_EXCEEDED not in str(refused):
            raise
        console.warning(f"question {example.id} is not asked again: with the error, it exceeds the context length")
        return predicted(example, sql, _usage(answer), sampled_answers)
    second = sql_from_answer(again.text)
    final = second if second and not errors.of(example.db_id, second) else sql
    return predicted(example, final, _usage(answer, again), sampled_answers, (sql, error))


def _usage(*answers: Answer) -> TokenUsage:
    """Time and tokens of all answers to a question."""
    return TokenUsage(
        latency=round(sum(answer.seconds for answer in answers), 4),
        first_token=round(answers[0].first_token, 4),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        truncated=answers[-1].truncated,
    )


def _key(
    example: Example,
    template: PromptTemplate,
    model: str,
    settings: EvaluateSettings,
    sampled_answers: int = 0,
    context_length: int = 0,
) -> str:
    """What an answer depends on: the model, the prompt, and the settings of the answer.

    Settings that are off are left out, so that logs from before they existed stay valid.
    """
    prompt = template.prompt(example.system, example.instruction, example.input)
    sampling = [sampled_answers, settings.sampling_temperature] if sampled_answers else []
    others = {
        "min_p": settings.sampling_min_p if sampled_answers else 0,
        "repair_attempts": settings.repair_attempts,
        "context_length": context_length,
        "grammar": settings.grammar if settings.grammar != "none" else "",
    }
    used = [f"{name}={value}" for name, value in others.items() if value]
    return hashlib.sha256(json.dumps([model, prompt, settings.max_tokens, *sampling, *used]).encode()).hexdigest()


def _prediction_from_log(example: Example, record: dict[str, Any]) -> Prediction:
    try:
        usage = TokenUsage(**{name: record[name] for name in TokenUsage.__slots__})
        before = (record[FAILED_BEFORE[0]], record[FAILED_BEFORE[1]]) if FAILED_BEFORE[0] in record else None
        return predicted(example, record["predicted"], usage, record.get("sampled_answers", ()), before)
    except KeyError as error:
        raise ServiceError(f"the log of answers lacks {error}; delete it to ask again") from error
