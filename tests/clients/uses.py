"""The uses of a client: what people do with it, what a pod must answer, and the recorded requests."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.serve.pods import ANSWER, SQL, TOKEN, RunningPod, published

Json = dict[str, Any]

RECORDED = Path(__file__).parent.parent / "serve" / "recorded"
REPORT = ['{"', "sql", '":', ' "', "SELECT", " 1", '"}']
CONTEXT = 512
WRONG_TOKEN = "wrong"


def is_answer(result: Any) -> bool:
    return bool(result == ANSWER)


def is_report(result: Any) -> bool:
    return bool(result == {"sql": "SELECT 1"})


def lists_the_model(result: Any) -> bool:
    return any(name.removesuffix(":latest") == "hotel" for name in result)


def is_description(result: Any) -> bool:
    return result in (CONTEXT, "hotel")  # OpenAI's description of a model has its name only


def is_streamed_answer(result: Any) -> bool:
    return "".join(result) == ANSWER and len(result) >= len(SQL)


def ends_after_three_tokens(result: Any) -> bool:
    return bool(result == "".join(SQL[:3]))


def ends_before_the_stop_text(result: Any) -> bool:
    return bool(result == "".join(SQL[:5]))


@dataclass(frozen=True)
class Use:
    """What people do with a client.

    Attributes:
        title: Its name in the table.
        is_right: Checks what the client returned; None if the pod must refuse it.
    """

    title: str
    is_right: Callable[[Any], bool] | None


USES = {
    "list": Use("list", lists_the_model),
    "show": Use("describe", is_description),
    "complete": Use("complete", is_answer),
    "chat": Use("chat", is_answer),
    "stream": Use("stream", is_streamed_answer),
    "json": Use("JSON", is_report),
    "schema": Use("JSON schema", is_report),
    "tokens": Use("maximum of tokens", ends_after_three_tokens),
    "stop": Use("stop texts", ends_before_the_stop_text),
    "system": Use("system message", is_answer),
    "developer": Use("developer message", is_answer),
    "keep_alive": Use("keep_alive", is_answer),
    "wrong_token": Use("wrong token", None),
    "unknown_model": Use("unknown model", None),
    "embeddings": Use("embeddings", None),
    "tools": Use("tools", None),
}


def client_pod(folder: Path) -> RunningPod:
    """A pod with the models that the client programs ask for: `hotel` answers with SQL, `report` with JSON."""
    models = [
        {"name": "hotel", "uri": published(folder, "1", context_length=CONTEXT)},
        {"name": "report", "uri": published(folder, "1", REPORT, gold=None, name="report"), "threshold": 0},
    ]
    return RunningPod(folder / "pod", models)


@dataclass(frozen=True)
class Recording:
    """What a client sent in a use, and what it got.

    Attributes:
        client: The client's name.
        version: Its version.
        source: How the requests were recorded.
        use: Key of `USES`.
        error: The client's error message; empty if the use works.
        requests: The requests, each with the status and the error of the pod's response.
    """

    client: str
    version: str
    source: str
    use: str
    error: str
    requests: tuple[Json, ...]


def read_recordings(folder: Path = RECORDED) -> list[Recording]:
    """Read all recordings: a file per client, whose first line describes the client and the others a use each."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        about, *uses = map(json.loads, path.read_text("utf-8").splitlines())
        found += [Recording(**about, **use | {"requests": tuple(use["requests"])}) for use in uses]
    return found


def write_recordings(recordings: list[Recording], folder: Path = RECORDED) -> None:
    """Write the recordings of whole clients."""
    folder.mkdir(exist_ok=True)
    for client in {recording.client for recording in recordings}:
        of_client = [recording for recording in recordings if recording.client == client]
        about = {name: getattr(of_client[0], name) for name in ("client", "version", "source")}
        lines = [about, *({name: getattr(one, name) for name in ("use", "error", "requests")} for one in of_client)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{client}.jsonl").write_text(text, "utf-8")


def send(http: httpx.Client, request: Json) -> httpx.Response:
    """Send a recorded request to the pod that `http` has the base URL of."""
    headers = dict(request["headers"])
    if request["token"] != "none":
        headers["Authorization"] = f"Bearer {TOKEN if request['token'] == 'valid' else WRONG_TOKEN}"
    content = json.dumps(request["body"]).encode() if "body" in request else None
    return http.request(request["method"], request["path"], headers=headers, content=content)


def result_of(recording: Recording, request: Json, answer: httpx.Response) -> Any:
    """What a client reads from an answer: names, a description, the text, its parts, or the object in it.

    Raises:
        KeyError: The answer lacks something that clients read.
    """
    path = request["path"]
    if path.startswith("/v1/models"):
        found = answer.json()
        return [model["id"] for model in found["data"]] if path == "/v1/models" else found["id"]
    if path == "/api/tags":
        return [model["name"] for model in answer.json()["models"]]
    if path == "/api/show":
        shown = answer.json()
        assert shown["capabilities"] == ["completion"] and shown["details"]["family"]
        return next(value for name, value in shown["model_info"].items() if name.endswith(".context_length"))
    parts = list(_openai_parts(answer) if path.startswith("/v1/") else _ollama_parts(answer))
    if recording.use == "stream":
        return parts
    text = "".join(parts)
    return json.loads(text) if recording.use in ("json", "schema") else text


def _openai_parts(answer: httpx.Response) -> Iterator[str]:
    """The parts of an answer of /v1/chat/completions, whose form is checked."""
    if "text/event-stream" not in answer.headers["content-type"]:
        whole = answer.json()
        [choice] = whole["choices"]
        assert whole["object"] == "chat.completion" and whole["id"] and whole["created"] > 0 and whole["model"]
        assert (choice["index"], choice["message"]["role"]) == (0, "assistant")
        assert choice["finish_reason"] in ("stop", "length")
        assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]
        yield choice["message"]["content"]
        return
    *events, last, rest = answer.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    reasons = []
    for event in events:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk" and chunk["id"] and chunk["created"] > 0 and chunk["model"]
        for choice in chunk["choices"]:
            assert choice["delta"]["role"] == "assistant"
            reasons.append(choice["finish_reason"])
            yield choice["delta"]["content"]
    assert reasons[-1] in ("stop", "length") and not any(reasons[:-1])


def _ollama_parts(answer: httpx.Response) -> Iterator[str]:
    """The parts of an answer of /api/generate or /api/chat, whose form is checked."""
    lines = [json.loads(line) for line in answer.text.splitlines()]
    for line in lines:
        assert line["model"] and line["created_at"]
        if "message" in line:
            assert line["message"]["role"] == "assistant"
        yield line["message"]["content"] if "message" in line else line["response"]
    assert [line["done"] for line in lines] == [*[False] * (len(lines) - 1), True]
    assert lines[-1]["done_reason"] in ("stop", "length")
    assert lines[-1]["prompt_eval_count"] > 0 and lines[-1]["eval_count"] > 0 and lines[-1]["eval_duration"] > 0
