"""A model's answers to questions, with the prompt of training and several requests at the same time."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from chatmetrics.components import console
from chatmetrics.components.console import track
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.evaluate.answer_log import AnswerLog
from chatmetrics.components.evaluate.predictions import Prediction, TokenUsage, predicted
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.inference.client import Answer, Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompt import sql_from_answer
from chatmetrics.components.nl2sql.template import PromptTemplate
from chatmetrics.components.storage.files import sha256_of

OPENAI_PATH = "/v1"
HASH_DIGITS = 16

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


def ask_gguf(
    system: str,
    gguf: Path,
    template: PromptTemplate,
    examples: Sequence[Example],
    settings: EvaluateSettings,
    sampled_answers: int,
    log: AnswerLog,
) -> list[Prediction]:
    """Serve a GGUF file, the one that would be deployed, with llama.cpp and ask it what is not answered in the log yet.

    Args:
        system: the model's name in the report.
        gguf: the model.
        template: the template of the model's prompts.
        examples: the questions.
        settings: length of an answer, concurrency, and temperature of sampled answers.
        sampled_answers: number of answers to each example that are sampled in addition to the greedy one.
        log: answers of earlier attempts, to which every answer is appended.

    Returns:
        The predictions, in the order of the examples.

    Raises:
        InputError: the GGUF file does not exist.
        ServiceError: the server did not start, or refused a prompt; the answers so far are kept.
        StorageError: the disk is full or not writable.
    """
    sampling = (sampled_answers, settings.sampling_temperature) if sampled_answers else ()
    keys = {_key(example, template, log.model, settings.max_tokens, *sampling): example for example in examples}
    if missing := _missing(keys, system, log):  # otherwise loading the model would take minutes for nothing
        with LlamaServer(gguf, settings.context_length, settings.concurrency) as server:
            client = Client(server.endpoint, template=template)

            def ask(example: Example) -> Prediction:
                sampled = _sample_answers(client, example, settings, sampled_answers)
                return _ask(client, example, settings.max_tokens, sampled)

            _ask_all(ask, missing, system, settings.concurrency, log)
    return [
        _prediction_from_log(example, log.answered[_key(example, template, log.model, settings.max_tokens, *sampling)])
        for example in examples
    ]


def ask_endpoint(
    system: str,
    model: Model,
    template: PromptTemplate,
    examples: Sequence[Example],
    settings: EvaluateSettings,
    log: AnswerLog,
) -> list[Prediction]:
    """Ask a remote model all examples that are not answered in the log yet. Every answer is appended to it.

    Args:
        system: the model's name in the report.
        model: see `connect`.
        template: see `connect`.
        examples: the questions.
        settings: length of an answer and concurrency.
        log: answers of earlier attempts, to which every answer is appended.

    Returns:
        The predictions, in the order of the examples.

    Raises:
        ServiceError: the endpoint stopped answering or refused; the answers so far are kept.
        StorageError: the disk is full or not writable.
    """
    keys = {_key(example, template, log.model, settings.max_tokens): example for example in examples}
    missing = _missing(keys, system, log)
    _ask_all(lambda example: _ask(model, example, settings.max_tokens), missing, system, settings.concurrency, log)
    return [
        _prediction_from_log(example, log.answered[_key(example, template, log.model, settings.max_tokens)])
        for example in examples
    ]


def _missing(keys: Mapping[str, Example], system: str, log: AnswerLog) -> dict[str, Example]:
    """The examples that are not answered in the log, by key."""
    missing = {key: example for key, example in keys.items() if key not in log.answered}
    if len(missing) < len(keys):
        console.note(f"{len(keys) - len(missing)} of {len(keys)} answers of the {system} are from an earlier attempt")
    return missing


def _ask_all(
    ask: Callable[[Example], Prediction], examples: Mapping[str, Example], system: str, concurrency: int, log: AnswerLog
) -> None:
    """Ask the examples, and append the answers to the log under the examples' keys."""

    def answer(key: str) -> None:
        log.append(key, ask(examples[key]).fields)

    for _ in _run_concurrently(answer, list(examples), system, concurrency):
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


def _sample_answers(client: Client, example: Example, settings: EvaluateSettings, number: int) -> list[str]:
    """The SQL of `number` sampled answers, with the seeds 1, 2, ..."""
    answers = (
        client.ask(
            example.system, example.instruction, example.input, settings.max_tokens, settings.sampling_temperature, seed
        )
        for seed in range(1, number + 1)
    )
    return [sql_from_answer(answer.text) for answer in answers]


def _ask(model: Model, example: Example, max_tokens: int, sampled_answers: Sequence[str] = ()) -> Prediction:
    answer = model.ask(example.system, example.instruction, example.input, max_tokens)
    usage = TokenUsage(
        latency=round(answer.seconds, 4),
        first_token=round(answer.first_token, 4),
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        truncated=answer.truncated,
    )
    return predicted(example, sql_from_answer(answer.text), usage, sampled_answers)


def _key(example: Example, template: PromptTemplate, model: str, *settings: float) -> str:
    """What an answer depends on: the model, the prompt, and the settings of the answer."""
    prompt = template.prompt(example.system, example.instruction, example.input)
    return hashlib.sha256(json.dumps([model, prompt, *settings]).encode()).hexdigest()


def _prediction_from_log(example: Example, record: dict[str, Any]) -> Prediction:
    try:
        usage = TokenUsage(**{name: record[name] for name in TokenUsage.__slots__})
        return predicted(example, record["predicted"], usage, record.get("sampled_answers", ()))
    except KeyError as error:
        raise ServiceError(f"the log of answers lacks {error}; delete it to ask again") from error
