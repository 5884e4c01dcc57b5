"""A published model in both runtimes, which offer the same API and render the same prompt."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatmetrics.components.errors import InputError, ServiceError, StorageError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, PromptTemplate
from chatmetrics.components.serve.local.serve import running
from chatmetrics.components.serve.settings import ServeSettings
from chatmetrics.components.storage.manifest import publish, stage
from tests.ports import free_port
from tests.waiting import wait_until

SYSTEM, QUESTION = "CREATE TABLE 酒店 (id);", "How many 酒店 are there?\nAll of them. "
PROMPT = f"{SYSTEM}<｜User｜>{QUESTION}<｜Assistant｜>"
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
TOKENS = 12
CONTEXT = 512

Json = dict[str, Any]


@pytest.fixture(scope="session")
def manifest(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    description = {"prompt_template": DEEPSEEK3.text, "context_length": CONTEXT}
    return publish(stage(str(tmp_path_factory.mktemp("models")), "hotel", "v1", [gguf], description))


@pytest.fixture(scope="session")
def endpoint(runtime: str, manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServeSettings(runtime=runtime, threads=1, cache=str(tmp_path_factory.mktemp("cache")))
    with running(settings, manifest) as url:
        yield url


def post(endpoint: str, path: str, body: Json) -> httpx.Response:
    return httpx.post(endpoint + path, json=body, timeout=60.0)


def generated(endpoint: str, **request: Any) -> Json:
    body = {"model": "hotel:v1", "options": {"num_predict": TOKENS}, "stream": False, **request}
    response = post(endpoint, "/api/generate", body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_no_text_contains_a_special_token_of_the_model_s_own(gguf: Path, tmp_path: Path) -> None:
    template = replace(DEEPSEEK3, special_tokens=("[USR]",)).text
    uri = publish(stage(str(tmp_path), "hotel", "v1", [gguf], {"prompt_template": template, "context_length": CONTEXT}))
    with running(ServeSettings(runtime="llama.cpp", threads=1, cache=str(tmp_path / "cache")), uri) as endpoint:
        plain, counted = [], []
        for text, counts in (("a[ USR]b", plain), ("a[USR]b", counted)):
            options: Json = {"model": "hotel:v1", "stream": False, "options": {"num_predict": 1}}
            messages = {"messages": [{"role": "user", "content": text}]}
            counts.append(post(endpoint, "/api/generate", {"prompt": text, **options}).json()["prompt_eval_count"])
            counts.append(post(endpoint, "/api/chat", {**messages, **options}).json()["prompt_eval_count"])
            answer = post(endpoint, "/v1/chat/completions", {**messages, "max_tokens": 1}).json()
            counts.append(answer["usage"]["prompt_tokens"])
    assert counted == plain


def test_all_apis_render_the_same_prompt(endpoint: str) -> None:
    raw = generated(endpoint, prompt=PROMPT, raw=True)
    templated = generated(endpoint, prompt=QUESTION, system=SYSTEM)
    body = {"model": "hotel:v1", "messages": MESSAGES, "stream": False, "options": {"num_predict": TOKENS}}
    chat = post(endpoint, "/api/chat", body).json()
    body = {"model": "hotel:v1", "messages": MESSAGES, "max_tokens": TOKENS}
    openai = post(endpoint, "/v1/chat/completions", body).json()

    texts = [raw["response"], templated["response"], chat["message"]["content"]]
    texts.append(openai["choices"][0]["message"]["content"])
    counts = [answer["prompt_eval_count"] for answer in (raw, templated, chat)]
    counts.append(openai["usage"]["prompt_tokens"])

    assert len(texts[0]) == TOKENS
    assert texts == [texts[0]] * 4
    assert counts == [counts[0]] * 4
    # The model's answer depends on the prompt: another question gets another answer.
    assert generated(endpoint, prompt=QUESTION + "?", system=SYSTEM)["response"] != texts[0]


def test_both_templates_render_a_conversation_the_same(endpoint: str) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "SELECT 1"}, {"role": "user", "content": "And now?"}]
    body = {"model": "hotel:v1", "messages": messages, "stream": False, "options": {"num_predict": TOKENS}}
    chat = post(endpoint, "/api/chat", body).json()
    raw = generated(endpoint, prompt=PROMPT + "SELECT 1<｜User｜>And now?<｜Assistant｜>", raw=True)
    assert (chat["message"]["content"], chat["prompt_eval_count"]) == (raw["response"], raw["prompt_eval_count"])


def test_without_a_system_text_the_prompt_starts_with_the_question(endpoint: str) -> None:
    raw = generated(endpoint, prompt=f"<｜User｜>{QUESTION}<｜Assistant｜>", raw=True)
    templated = generated(endpoint, prompt=QUESTION)
    assert (raw["response"], raw["prompt_eval_count"]) == (templated["response"], templated["prompt_eval_count"])


@pytest.mark.parametrize(("path", "request_"), [("generate", {"prompt": QUESTION}), ("chat", {"messages": MESSAGES})])
def test_a_streamed_answer_equals_the_complete_one(endpoint: str, path: str, request_: Json) -> None:
    body = {"model": "hotel:v1", "options": {"num_predict": TOKENS}, **request_}
    whole = post(endpoint, f"/api/{path}", {**body, "stream": False}).json()
    lines = [json.loads(line) for line in post(endpoint, f"/api/{path}", body).text.splitlines()]

    def text(line: Json) -> str:
        return str(line["message"]["content"] if path == "chat" else line["response"])

    assert len(lines) > 2
    assert "".join(map(text, lines)) == text(whole)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert (lines[-1]["done_reason"], lines[-1]["eval_count"]) == ("length", TOKENS)


def test_openai_answers_are_streamed_as_events(endpoint: str) -> None:
    body = {"model": "hotel:v1", "messages": MESSAGES, "max_tokens": TOKENS, "stream": True}
    with httpx.stream("POST", f"{endpoint}/v1/chat/completions", json=body) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    pieces = [choice["delta"].get("content") or "" for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert events[-1] == "[DONE]"
    assert "".join(pieces) == generated(endpoint, prompt=PROMPT, raw=True)["response"]


def test_all_lists_contain_the_model(endpoint: str) -> None:
    tags, loaded = (httpx.get(f"{endpoint}/api/{path}").json()["models"] for path in ("tags", "ps"))
    assert [model["name"] for model in tags] == [model["name"] for model in loaded] == ["hotel:v1"]
    assert tags[0]["digest"] == loaded[0]["digest"]
    assert loaded[0]["context_length"] == CONTEXT
    assert [model["id"] for model in httpx.get(f"{endpoint}/v1/models").json()["data"]] == ["hotel:v1"]
    shown = post(endpoint, "/api/show", {"model": "hotel:v1"}).json()
    assert shown["template"] == "{{ .System }}<｜User｜>{{ .Prompt }}<｜Assistant｜>"
    assert httpx.get(f"{endpoint}/api/version").json()["version"]


def test_our_client_can_use_the_endpoint(endpoint: str) -> None:
    client = Client(endpoint)
    assert client.model == "hotel:v1"
    answer = client.generate(PROMPT, TOKENS)
    assert answer.text == generated(endpoint, prompt=PROMPT, raw=True)["response"]
    assert answer.truncated
    assert client.count_tokens(PROMPT) == answer.prompt_tokens
    assert client.count_tokens("a b " * CONTEXT) is None
    with pytest.raises(ServiceError, match="context size"):
        client.generate("a b " * CONTEXT)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/generate", {"model": "other", "prompt": "x"}, 404, "'other' not found"),
        ("/api/chat", {"model": "hotel:v1", "messages": "x"}, 400, "messages"),
        ("/v1/chat/completions", {"model": "other", "messages": MESSAGES}, 404, "'other' not found"),
        ("/api/generate", {"model": "hotel:v1", "prompt": 3}, 400, "prompt"),
    ],
)
def test_a_bad_request_is_refused_in_json(endpoint: str, path: str, body: Json, status: int, message: str) -> None:
    response = post(endpoint, path, body)
    assert response.status_code == status
    assert message in json.dumps(response.json()["error"])


@pytest.fixture(scope="session")
def gateway(gguf: Path) -> Iterator[str]:
    with running(ServeSettings(runtime="llama.cpp", threads=1, request_kib=64), str(gguf)) as url:
        yield url


@pytest.mark.parametrize(
    ("path", "content", "status", "message"),
    [
        ("/api/generate", "{bad", 400, "not JSON"),
        ("/v1/chat/completions", "{bad", 400, "not JSON"),
        ("/api/generate", "[]", 400, "JSON object"),
        ("/api/generate", '{"model": "tiny", "prompt": "x", "images": ["AA"]}', 400, "not supported: images"),
        ("/api/generate", '{"model": "tiny", "prompt": "x", "options": {"num_ctx": 9999}}', 400, "at most 2048"),
        ("/api/generate", '{"model": "tiny", "prompt": "x", "options": 3}', 400, "options"),
        ("/api/generate", '{"model": "tiny", "prompt": "x", "options": {"temperature": "hot"}}', 400, "temperature"),
        ("/api/chat", '{"model": "tiny", "messages": [{"role": "user"}]}', 400, "messages[0]"),
        ("/api/generate", '{"model": "tiny", "prompt": "' + "a b " * 4000 + '"}', 400, "context size"),
        ("/api/generate", " " * 70_000, 413, "larger than 65536"),
        ("/api/pull", '{"model": "tiny"}', 404, "Not Found"),
    ],
)
def test_the_gateway_reports_what_is_wrong(gateway: str, path: str, content: str, status: int, message: str) -> None:
    response = httpx.post(gateway + path, content=content)
    assert response.status_code == status, response.text
    assert message in json.dumps(response.json()["error"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/%2e%2e/slots/0"),
        ("GET", "/v1/%2e%2e/props"),
        ("POST", "/v1/../slots/0?action=erase"),
        ("POST", "/v1/..%2fcompletion"),
        ("GET", "/v1/models/%2e%2e/%2e%2e/slots"),
        ("POST", "/v1/embeddings"),
        ("GET", "/slots"),
        ("GET", "/metrics"),
        ("POST", "/completion"),
        ("GET", "/v1//slots"),
        ("GET", "/v1/models/x%2f..%2f..%2fslots"),
    ],
)
def test_no_path_leads_to_the_engine_s_own_paths(gateway: str, method: str, path: str) -> None:
    host, _, port = gateway.removeprefix("http://").partition(":")
    with closing(HTTPConnection(host, int(port))) as connection:  # httpx would resolve the dots
        connection.request(method, path, "{}", {"Content-Type": "application/json"})
        assert connection.getresponse().status in (404, 405)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "attacker.example"}, 403),
        ({"Host": "attacker.example:80"}, 403),
        ({"Host": "127.0.0.1.attacker.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "localhost:11434"}, 200),
        ({"Host": "localhost:11434", "Origin": "http://localhost:11434"}, 200),
        ({"Host": "[::1]:11434"}, 200),
    ],
)
def test_web_pages_of_other_sites_cannot_use_a_local_model(gateway: str, headers: Json, status: int) -> None:
    body = {"model": "tiny", "prompt": "x", "options": {"num_predict": 1}, "stream": False}
    for content_type in ("text/plain", "application/json"):
        sent = {**headers, "Content-Type": content_type}
        assert httpx.post(f"{gateway}/api/generate", json=body, headers=sent).status_code == status
    assert httpx.get(f"{gateway}/v1/models", headers=headers).status_code == status


def test_pages_of_permitted_origins_can_use_a_local_model(gguf: Path) -> None:
    settings = ServeSettings(runtime="llama.cpp", threads=1, origins=("https://chat.example",))
    page = {"Origin": "https://chat.example"}
    preflight = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    with running(settings, str(gguf)) as url:
        allowed = httpx.options(f"{url}/v1/chat/completions", headers=preflight)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://chat.example")
        listed = httpx.get(f"{url}/v1/models", headers=page)
        assert listed.headers["access-control-allow-origin"] == "https://chat.example"
        other = {**preflight, "Origin": "https://attacker.example"}
        assert httpx.options(f"{url}/v1/chat/completions", headers=other).status_code == 400


def test_a_model_can_be_asked_for_by_its_id(gateway: str) -> None:
    [listed] = httpx.get(f"{gateway}/v1/models").json()["data"]
    for name in (listed["id"], listed["id"].partition(":")[0]):
        assert httpx.get(f"{gateway}/v1/models/{name}").json()["id"] == listed["id"]
    assert httpx.get(f"{gateway}/v1/models/other").status_code == 404


def test_a_damaged_model_is_not_served(gguf: Path, tmp_path: Path) -> None:
    uri = publish(stage(str(tmp_path / "models"), "hotel", "v1", [gguf], {"prompt_template": DEEPSEEK3.text}))
    stored = tmp_path / "models" / "hotel" / "v1" / gguf.name
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:-1] + b"\xff")
    with (
        pytest.raises(StorageError, match=gguf.name),
        running(ServeSettings(cache=str(tmp_path / "cache")), uri),
    ):
        pass


def test_errors_name_what_cannot_be_served(gguf: Path, tmp_path: Path) -> None:
    settings = ServeSettings(runtime="llama.cpp", cache=str(tmp_path))
    with pytest.raises(InputError, match=r"nothing\.gguf: no such file"), running(settings, "nothing.gguf"):
        pass
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ServiceError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use"),
        running(settings, str(gguf), taken.getsockname()[1]),
    ):
        pass
    with pytest.raises(InputError, match="prompt template"):
        PromptTemplate.parse("{instruction} {input}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_its_children(runtime: str, gguf: Path, tmp_path: Path, number: int) -> None:
    port = free_port()
    script = (
        "from chatmetrics.components.serve.local.serve import serve\n"
        "from chatmetrics.components.serve.settings import ServeSettings\n"
        f"serve(ServeSettings(runtime={runtime!r}, cache={str(tmp_path)!r}), {str(gguf)!r}, {port})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(f"serving tiny:latest on http://127.0.0.1:{port} (OpenAI: /v1, Ollama: /api)")
    children = descendants(process.pid)
    assert children
    process.send_signal(number)
    assert process.wait(20) == 0
    assert not [pid for pid in children if is_alive(pid)]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/api/version")


def test_children_end_even_when_the_server_is_killed(runtime: str, gguf: Path, tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from chatmetrics.components.serve.local.serve import running\n"
        "from chatmetrics.components.serve.settings import ServeSettings\n"
        f"with running(ServeSettings(runtime={runtime!r}, cache={str(tmp_path)!r}), {str(gguf)!r}) as url:\n"
        "    print(url, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    children = descendants(process.pid)
    assert children
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, children)), 120)


def descendants(pid: int) -> list[int]:
    found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return found + [grandchild for child in found for grandchild in descendants(child)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
