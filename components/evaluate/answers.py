"""A model's answers to questions, with the prompt of training and several requests at the same time."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

from chatmetrics.components.console import track
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.evaluate.predictions import Prediction, TokenUsage, predicted
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.inference.client import Answer, Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompt import render_prompt, sql_from_answer
from chatmetrics.components.storage.files import disk_errors

OPENAI_PATH = "/v1"

Task = TypeVar("Task")
Done = TypeVar("Done")


class Model(Protocol):
    """A client of a model: llama.cpp's server, Ollama, or OpenAI's chat protocol."""

    def ask(self, system: str, instruction: str, input: str, max_tokens: int) -> Answer:
        """Answer one question, greedily. Thread-safe."""


def connect(endpoint: str, model: str) -> Model:
    """A client for an endpoint: OpenAI's protocol if the URL ends in /v1, else Ollama's or llama.cpp's.

    Raises:
        ServiceError: the endpoint does not answer, or does not have the model.
    """
    if endpoint.rstrip("/").endswith(OPENAI_PATH):
        # Imported here because only teachers and remote models need openai.
        from chatmetrics.components.inference.openai_chat import OpenAIChat

        return OpenAIChat(endpoint, model)
    return Client(endpoint, model)


def ask_gguf(
    system: str, gguf: Path, examples: Sequence[Example], settings: EvaluateSettings, sampled_answers: int = 0
) -> list[Prediction]:
    """Serve a GGUF file, the one that would be deployed, with llama.cpp and ask it all examples.

    Args:
        system: the model's name in the report.
        gguf: the model.
        examples: the questions.
        settings: length of an answer, concurrency, and temperature of sampled answers.
        sampled_answers: number of answers to each example that are sampled in addition to the greedy one.

    Returns:
        The predictions, in the order of the examples.

    Raises:
        InputError: the GGUF file does not exist.
        ServiceError: the server did not start, or refused a prompt.
    """
    with LlamaServer(gguf, settings.context_length, settings.concurrency) as server:
        client = Client(server.endpoint)

        def ask(example: Example) -> Prediction:
            sampled = _sample_answers(client, example, settings, sampled_answers)
            return _ask(client, example, settings.max_tokens, sampled)

        return list(_run_concurrently(ask, examples, system, settings.concurrency))


def ask_endpoint(
    system: str, model: Model, identity: str, examples: Sequence[Example], settings: EvaluateSettings, log: Path
) -> list[Prediction]:
    """Ask a remote model all examples that are not answered in the log yet. Every answer is appended to it.

    Args:
        system: the model's name in the report.
        model: see `connect`.
        identity: endpoint and model name, which are part of an answer's key.
        examples: the questions.
        settings: length of an answer and concurrency.
        log: append-only log of answers, from which an interrupted run resumes.

    Returns:
        The predictions, in the order of the examples.

    Raises:
        ServiceError: the endpoint stopped answering or refused; the answers so far are kept.
        StorageError: the disk is full or not writable.
    """
    keys = [_key(example, identity, settings.max_tokens) for example in examples]
    answered = _read_log(log)
    missing = {key: example for key, example in zip(keys, examples, strict=True) if key not in answered}
    writing = Lock()
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:

            def ask(key: str) -> None:
                record = dict(_ask(model, missing[key], settings.max_tokens).fields)
                with writing:
                    answered[key] = record
                    file.write(json.dumps({"key": key, **record}) + "\n")
                    file.flush()

            for _ in _run_concurrently(ask, list(missing), system, settings.concurrency):
                pass
    return [_prediction_from_log(example, answered[key]) for key, example in zip(keys, examples, strict=True)]


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


def _key(example: Example, identity: str, max_tokens: int) -> str:
    prompt = render_prompt(example.system, example.instruction, example.input)
    return hashlib.sha256(json.dumps([identity, prompt, max_tokens]).encode()).hexdigest()


def _read_log(path: Path) -> dict[str, dict[str, Any]]:
    """The answers to earlier runs, by key. A line that is incomplete is ignored."""
    answered = {}
    if path.exists():
        with disk_errors(path):
            lines = path.read_text("utf-8").split("\n")
        for line in lines:
            with suppress(ValueError, KeyError):
                record = json.loads(line)
                answered[record.pop("key")] = record
        # The next answer must not be appended to an incomplete last line.
        if lines and lines[-1]:
            with disk_errors(path), path.open("a", encoding="utf-8") as file:
                file.write("\n")
    return answered


def _prediction_from_log(example: Example, record: dict[str, Any]) -> Prediction:
    try:
        usage = TokenUsage(**{name: record[name] for name in TokenUsage.__slots__})
        return predicted(example, record["predicted"], usage)
    except KeyError as error:
        raise ServiceError(f"the log of answers lacks {error}; delete it to ask again") from error
