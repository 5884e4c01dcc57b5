"""Asking a GGUF model every question, with the prompt it was trained on."""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompt import render_prompt, sql_from_answer
from chatmetrics.components.progress import track
from chatmetrics.components.storage.files import atomic_file


@dataclass(frozen=True, slots=True)
class Prediction:
    """One model's SQL for one question; `latency` in seconds, `truncated` when `max_tokens` ended the answer."""

    id: str
    db_id: str
    question: str
    gold: str
    predicted: str
    model: str
    latency: float
    prompt_tokens: int
    completion_tokens: int
    truncated: bool


def predict(model: str, gguf: Path, examples: Sequence[Example], settings: EvaluateSettings) -> list[Prediction]:
    """Serve `gguf` with llama.cpp and ask it all examples greedily, several at a time; in the examples' order.

    Args:
        model: what to call it in the predictions, "student" or "base".
        gguf: the very file that would be deployed.
        examples: what to ask.
        settings: context, answer length and how many at a time.

    Raises:
        InputError: there is no such GGUF.
        ServiceError: the server did not start, or refused a prompt.
    """
    with LlamaServer(gguf, settings.context_length, settings.parallel) as server:
        client = Client(server.endpoint)
        with ThreadPoolExecutor(settings.parallel) as pool:
            asked = pool.map(lambda example: _ask(client, model, example, settings.max_tokens), examples)
            return list(track(asked, f"asking the {model}", len(examples), "questions"))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one JSON object a line; the file appears whole or not at all."""
    with atomic_file(path) as file:
        for prediction in predictions:
            line = json.dumps(asdict(prediction), ensure_ascii=False) + "\n"
            # Half of a surrogate pair, which a model can produce, becomes its JSON escape.
            file.write(line.encode("utf-8", "backslashreplace"))


def _ask(client: Client, model: str, example: Example, max_tokens: int) -> Prediction:
    prompt = render_prompt(example.system, example.instruction, example.input)
    answer = client.generate(prompt, max_tokens)
    return Prediction(
        id=example.id,
        db_id=example.db_id,
        question=example.question,
        gold=example.sql,
        predicted=sql_from_answer(answer.text),
        model=model,
        latency=round(answer.seconds, 4),
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        truncated=answer.truncated,
    )
