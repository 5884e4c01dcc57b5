import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.process import ChildProcess
from chatmetrics.components.inference.server import LlamaServer
from tests.gguf_files import answering_gguf, tiny_gguf

SQL = ["SELECT", " count", "(*)", " FROM", " hotel"]
PROMPT = "CREATE TABLE hotel (id);<｜User｜>How many 酒店?<｜Assistant｜>"
CONTEXT = 300


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def server(gguf: Path) -> Iterator[LlamaServer]:
    with LlamaServer(gguf, CONTEXT, concurrency=2, threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LlamaServer) -> Client:
    return Client(server.endpoint)


def test_answers_are_greedy_and_counted(client: Client) -> None:
    answer = client.generate(PROMPT, max_tokens=16)
    assert len(answer.text) == answer.completion_tokens == 16  # a token of this model is a character
    assert answer.truncated
    assert answer.prompt_tokens == client.count_tokens(PROMPT)
    assert answer.seconds > 0
    assert client.generate(PROMPT, max_tokens=16).text == answer.text
    assert client.generate(PROMPT + " ", max_tokens=16).text != answer.text


def test_the_prompt_gets_one_bos_token(server: LlamaServer, client: Client) -> None:
    request = {"content": "a", "add_special": True, "with_pieces": True}
    pieces = [token["piece"] for token in httpx.post(f"{server.endpoint}/tokenize", json=request).json()["tokens"]]
    assert pieces == ["<｜begin▁of▁sentence｜>", "a"]
    assert client.count_tokens("a") == client.generate("a", max_tokens=1).prompt_tokens == 2


def test_an_answer_ends_at_eos(tmp_path: Path) -> None:
    with LlamaServer(answering_gguf(tmp_path, SQL), CONTEXT, threads=1) as server:
        answer = Client(server.endpoint).generate(PROMPT)
    assert answer.text == "SELECT count(*) FROM hotel"
    assert (answer.completion_tokens, answer.truncated) == (len(SQL) + 1, False)  # EOS counts


def test_every_slot_has_the_full_context(client: Client) -> None:
    prompts = [letter * (CONTEXT - 20) for letter in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        together = [answer.text for answer in pool.map(client.generate, prompts, [8] * 4)]
    assert together == [client.generate(prompt, 8).text for prompt in prompts]
    assert all(len(text) == 8 for text in together)
    with pytest.raises(ServiceError, match="exceeds the available context size"):
        client.generate("a" * 1000)


def test_one_client_can_send_many_requests(client: Client) -> None:
    # The server closes a connection after a number of requests, without announcing it in a streamed answer.
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda number: client.generate(f"{number}", max_tokens=1), range(600)))
    assert all(answer.completion_tokens == 1 for answer in answers)


def test_the_server_listens_on_this_machine_only(server: LlamaServer) -> None:
    port = f"{int(server.endpoint.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [address for _, address, _, state, *_ in lines if state == "0A" and address.endswith(f":{port}")]
    assert listening == [f"0100007F:{port}"]


def test_leaving_the_context_ends_the_server(gguf: Path) -> None:
    with LlamaServer(gguf, CONTEXT, threads=1) as server:
        client = Client(server.endpoint)
    assert not server.running
    with pytest.raises(ServiceError, match=f"cannot reach {server.endpoint}"):
        client.generate(PROMPT)


def test_the_server_dies_with_its_parent(gguf: Path) -> None:
    script = (
        "import time\nfrom pathlib import Path\n"
        "from chatmetrics.components.inference.server import LlamaServer\n"
        f"with LlamaServer(Path({str(gguf)!r}), 300, threads=1) as server:\n"
        "    print(server.endpoint, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        endpoint = parent.stdout.readline().strip()
        assert httpx.get(f"{endpoint}/health").is_success
        parent.kill()
    deadline = time.monotonic() + 10
    with pytest.raises(httpx.TransportError):
        while time.monotonic() < deadline:
            httpx.get(f"{endpoint}/health", timeout=1.0)
            time.sleep(0.05)


def test_the_program_in_the_environment_gives_the_same_answers(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which("llama-server")
    if not program:
        pytest.skip("llama-server is not on PATH")
    texts = []
    for choice in ("", program):
        monkeypatch.setenv("LLAMA_SERVER", choice)
        with LlamaServer(gguf, CONTEXT, concurrency=2, threads=1) as server:
            texts.append(Client(server.endpoint).generate(PROMPT, 16).text)
    assert texts[0] == texts[1]


def test_a_missing_program_is_reported(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMA_SERVER", "/nowhere/llama-server")
    with pytest.raises(ServiceError, match="ended with status 1"), LlamaServer(gguf, CONTEXT):
        pass
    assert "/nowhere/llama-server: No such file or directory" in capfd.readouterr().err


def test_an_unusable_model_or_port_is_an_error_that_names_it(
    gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"missing\.gguf: No such file"):
        LlamaServer(tmp_path / "missing.gguf", CONTEXT)
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    with pytest.raises(InputError, match=r"text\.gguf is not a GGUF file"):
        LlamaServer(text, CONTEXT)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServiceError, match="already in use"):
        LlamaServer(gguf, CONTEXT, port=taken.getsockname()[1])
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:100_000])
    with (
        pytest.raises(ServiceError, match=r"llama\.cpp server \(cut\.gguf\) ended with status 1"),
        LlamaServer(cut, 300),
    ):
        pass
    assert "error loading model" in capfd.readouterr().err  # llama.cpp's own message


def test_a_context_beyond_the_model_is_refused(gguf: Path) -> None:
    with pytest.raises(ServiceError, match="context of 4096 tokens, not 8192"), LlamaServer(gguf, 8192, threads=1):
        pass


def test_a_child_that_is_killed_or_late_is_reported() -> None:
    with (
        ChildProcess("sleeper", ["sh", "-c", "kill -9 $$"]) as child,
        pytest.raises(ServiceError, match="sleeper was ended by SIGKILL, probably because it ran out of memory"),
    ):
        child.wait_until(lambda: False, timeout=5.0)
    with ChildProcess("sleeper", ["sleep", "60"]) as child:
        with pytest.raises(ServiceError, match=r"sleeper was not ready after 0 s"):
            child.wait_until(lambda: False, timeout=0.2)
        assert child.running
    assert not child.running


def test_a_terminals_interrupt_does_not_reach_the_child() -> None:
    with ChildProcess("sleeper", ["sh", "-c", "echo $$; exec sleep 60"]) as child:
        child.wait_until(lambda: bool(child.log()), timeout=5.0)
        assert os.getpgid(int(child.log())) != os.getpgid(0)


def test_a_log_that_is_read_while_it_is_written_is_complete() -> None:
    lines = [f"{number:04}" for number in range(3000)]
    program = "import os\nfor number in range(3000): os.write(1, b'%04d\\n' % number)"
    with ChildProcess("writer", [sys.executable, "-c", program]) as child:
        while child.running:
            child.log()
        assert child.log().splitlines() == lines
