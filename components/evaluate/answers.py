"""Asking a model every question, with the prompt it was trained on, several at a time."""

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
    """Whatever answers: llama.cpp's server, Ollama, or OpenAI's chat protocol."""

    def ask(self, system: str, instruction: str, input: str, max_tokens: int) -> Answer:
        """Answer one question, greedily; usable from several threads."""


def connect(endpoint: str, model: str) -> Model:
    """A client for an endpoint: OpenAI's protocol where the URL ends in /v1, else Ollama's or llama.cpp's.

    Raises:
        ServiceError: nothing answers there, or it does not have the model.
    """
    if endpoint.rstrip("/").endswith(OPENAI_PATH):
        # Imported here because only teachers and remote models need it.
        from chatmetrics.components.inference.openai_chat import OpenAIChat

        return OpenAIChat(endpoint, model)
    return Client(endpoint, model)


def ask_gguf(
    system: str, gguf: Path, examples: Sequence[Example], settings: EvaluateSettings, sampled_answers: int = 0
) -> list[Prediction]:
    """Serve `gguf`, the very file that would be deployed, with llama.cpp and ask it all examples, in their order.

    Args:
        system: what the model is called in the report.
        gguf: its file.
        examples: what to ask.
        settings: length of an answer, how many at a time, and the temperature of sampled_answers.
        sampled_answers: how many more answers to each example are sampled.

    Raises:
        InputError: there is no such GGUF.
        ServiceError: the server did not start, or refused a prompt.
    """
    with LlamaServer(gguf, settings.context_length, settings.concurrency) as server:
        client = Client(server.endpoint)
        asked = _in_parallel(
            lambda example: _ask(
                client, example, settings.max_tokens, _probe(client, example, settings, sampled_answers)
            ),
            examples,
            system,
            settings.concurrency,
        )
        return list(asked)


def ask_endpoint(
    system: str, model: Model, identity: str, examples: Sequence[Example], settings: EvaluateSettings, journal: Path
) -> list[Prediction]:
    """Ask a remote model all examples that the journal does not hold yet; every answer is in it before it counts.

    Args:
        system: what the model is called in the report.
        model: see `connect`.
        identity: what else decides an answer, the endpoint and the model's name.
        examples: what to ask.
        settings: length of an answer and how many at a time.
        journal: file that an interrupted run goes on from.

    Raises:
        ServiceError: the endpoint went away or refused; what was answered is kept.
        StorageError: the disk refused.
    """
    keys = [_key(example, identity, settings.max_tokens) for example in examples]
    answered = _read_journal(journal)
    missing = {key: example for key, example in zip(keys, examples, strict=True) if key not in answered}
    writing = Lock()
    with disk_errors(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as file:

            def ask(key: str) -> None:
                record = dict(_ask(model, missing[key], settings.max_tokens).fields)
                with writing:
                    answered[key] = record
                    file.write(json.dumps({"key": key, **record}) + "\n")
                    file.flush()

            for _ in _in_parallel(ask, list(missing), system, settings.concurrency):
                pass
    return [_from_journal(example, answered[key]) for key, example in zip(keys, examples, strict=True)]


def _in_parallel(do: Callable[[Task], Done], tasks: Sequence[Task], system: str, concurrency: int) -> Iterator[Done]:
    """Yield what becomes of the tasks, in their order; after an error no further one is begun."""
    pool = ThreadPoolExecutor(concurrency)
    try:
        done = [pool.submit(do, task) for task in tasks]
        yield from track((future.result() for future in done), f"asking the {system}", len(tasks), "questions")
    finally:
        pool.shutdown(cancel_futures=True)


def _probe(client: Client, example: Example, settings: EvaluateSettings, sampled_answers: int) -> list[str]:
    """Sampled answers, with the seeds 1 to `sampled_answers`."""
    answers = (
        client.ask(
            example.system, example.instruction, example.input, settings.max_tokens, settings.sampling_temperature, seed
        )
        for seed in range(1, sampled_answers + 1)
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


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """What earlier runs were answered; a line that was not written to its end is left out."""
    answered = {}
    if path.exists():
        with disk_errors(path):
            lines = path.read_text("utf-8").split("\n")
        for line in lines:
            with suppress(ValueError, KeyError):
                record = json.loads(line)
                answered[record.pop("key")] = record
        # A torn last line must not run into the next answer.
        if lines and lines[-1]:
            with disk_errors(path), path.open("a", encoding="utf-8") as file:
                file.write("\n")
    return answered


def _from_journal(example: Example, record: dict[str, Any]) -> Prediction:
    try:
        usage = TokenUsage(**{name: record[name] for name in TokenUsage.__slots__})
        return predicted(example, record["predicted"], usage)
    except KeyError as error:
        raise ServiceError(f"the journal of answers lacks {error}; delete it to ask anew") from error
