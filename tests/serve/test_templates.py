"""Each template in both servers: the same prompt and the same tokens as in training, with one BOS."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer

from chatmetrics.components.convert.convert import ConvertReport, convert, description
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.prompts.template import TEMPLATES, PromptTemplate, write_merged_template
from chatmetrics.components.serve.local.ollama_server import OllamaServer
from chatmetrics.components.serve.local.serve import running
from chatmetrics.components.serve.model import find_model
from chatmetrics.components.serve.model_management import ModelManagement
from chatmetrics.components.serve.settings import ServeSettings
from chatmetrics.components.storage.manifest import describe
from tests.base_tokenizers import BASES, write_base
from tests.gguf_files import answering_gguf

SCHEMA = "CREATE TABLE 酒店 (\n  id INTEGER PRIMARY KEY,\n  name TEXT -- 'L''Hôtel'\n);"
QUESTION = "Using the database 'hotel'.\n2024年上海评分前10的酒店? <b> & \"x\""
CONVERSATION = [
    {"role": "system", "content": SCHEMA},
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "SELECT 1"},
    {"role": "user", "content": "And now?"},
]
CONTEXT = 512
SETTINGS = ConvertSettings(quantization="F16", context_length=CONTEXT)
ollama = pytest.mark.skipif(not shutil.which("ollama"), reason="ollama is not on PATH")


@dataclass(frozen=True)
class Converted:
    """A base model, and its GGUF file."""

    folder: Path
    report: ConvertReport

    @property
    def template(self) -> PromptTemplate:
        return self.report.template

    def ids(self, prompt: str) -> list[int]:
        return list(Tokenizer.from_file(str(self.folder / "tokenizer.json")).encode(prompt).ids)

    def prompt(self, schema: str) -> str:
        instruction, _, question = QUESTION.partition("\n")
        return self.template.prompt(schema, instruction, question)


# A base in its own template; a base without a chat template; one that was trained with another than its own.
CASES = {**{name: name for name in BASES}, "plain": "smollm2", "trained with plain": "qwen"}


@pytest.fixture(scope="module", params=CASES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    work = tmp_path_factory.mktemp("base")
    folder = write_base(work / "model", BASES[CASES[request.param]])
    if request.param == "plain":
        (folder / "chat_template.jinja").unlink()
    if request.param == "trained with plain":
        write_merged_template(folder, TEMPLATES["plain"])
    report = convert(SETTINGS, folder, work / "gguf", "model")  # compares tokens, and checks the end of an answer
    describe("model", report.gguf, description(SETTINGS, folder, report))
    return Converted(folder, report)


@pytest.fixture(scope="module")
def llama(converted: Converted) -> Iterator[LlamaServer]:
    with LlamaServer(converted.report.gguf, CONTEXT, chat_template=converted.template.jinja()) as server:
        yield server


@pytest.fixture(scope="module")
def ollama_server(converted: Converted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaServer]:
    settings = ServeSettings(cache=str(tmp_path_factory.mktemp("cache")))
    program = shutil.which("ollama")
    assert program
    with OllamaServer(program, find_model(str(converted.report.gguf), settings), settings) as server:
        yield server


def rendered_by_llama(server: LlamaServer, messages: list[dict[str, str]]) -> str:
    response = httpx.post(f"{server.endpoint}/apply-template", json={"messages": messages}, trust_env=False)
    return str(response.raise_for_status().json()["prompt"])


@pytest.mark.parametrize("schema", [SCHEMA, ""], ids=["schema", "no schema"])
def test_llama_cpp_has_the_prompt_and_the_tokens_of_training(
    converted: Converted, llama: LlamaServer, schema: str
) -> None:
    messages = [{"role": "system", "content": schema}, {"role": "user", "content": QUESTION}]
    prompt = converted.prompt(schema)
    assert rendered_by_llama(llama, messages if schema else messages[1:]) == prompt
    request = {"content": prompt, "add_special": True, "parse_special": True}
    answer = httpx.post(f"{llama.endpoint}/tokenize", json=request, trust_env=False).raise_for_status().json()
    assert answer["tokens"] == converted.ids(prompt)
    assert Client(llama.endpoint).count_tokens(prompt) == len(answer["tokens"])
    body = {"messages": messages if schema else messages[1:], "max_tokens": 1}
    chat = httpx.post(f"{llama.endpoint}/v1/chat/completions", json=body, timeout=60, trust_env=False).json()
    assert chat["usage"]["prompt_tokens"] == len(answer["tokens"])


@ollama
@pytest.mark.parametrize("schema", [SCHEMA, ""], ids=["schema", "no schema"])
def test_ollama_has_the_prompt_and_the_tokens_of_training(
    converted: Converted, ollama_server: OllamaServer, schema: str
) -> None:
    prompt = converted.prompt(schema)
    with httpx.Client(base_url=ollama_server.endpoint, timeout=60, trust_env=False) as http:
        management = ModelManagement(http)
        name = next(iter(management.digests("/api/tags")))
        assert management.rendered_prompt(name, schema, QUESTION) == prompt
        messages = [{"role": "system", "content": schema}] if schema else []
        messages.append({"role": "user", "content": QUESTION})
        body = {"model": name, "messages": messages, "stream": False, "options": {"num_predict": 1}}
        chat = http.post("/api/chat", json=body).raise_for_status().json()
        stop = http.post("/api/show", json={"model": name}).json()["parameters"]
    assert chat["prompt_eval_count"] == len(converted.ids(prompt))
    assert Client(ollama_server.endpoint).count_tokens(prompt) == len(converted.ids(prompt))
    assert all(repr(text)[1:-1] in stop for text in filter(None, [converted.template.stop.strip()]))


ANSWERS = {
    "chatml": ({"chatml": True}, ["SELECT", " 1"], False),
    "plain": ({"after": "\n"}, ["SELECT", " 1", "\n\n", "and", " more"], True),
}


@pytest.mark.parametrize("runtime", ["llama.cpp", pytest.param("ollama", marks=ollama)])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_ends_where_its_template_says(tmp_path: Path, name: str, runtime: str) -> None:
    """At the end of the turn; in plain, at a blank line, even if the model would continue without end."""
    options, answer, endless = ANSWERS[name]
    gguf, template = answering_gguf(tmp_path, answer, 512, endless, **options), TEMPLATES[name]
    about = {"prompt_template": template.text, "context_length": 512}
    describe("m", gguf, about | {"stop": [template.stop]})
    settings = ServeSettings.model_validate({"runtime": runtime, "cache": str(tmp_path / "cache")})
    with running(settings, str(gguf)) as endpoint:
        asked = Client(endpoint, template=template).ask(SCHEMA, "Do it.", "How many?", 32)
        body = {"model": "answering", "messages": CONVERSATION[:2], "stream": False}
        chat = httpx.post(f"{endpoint}/api/chat", json=body, timeout=60, trust_env=False).json()
    assert (asked.text, asked.truncated) == ("SELECT 1", False)
    assert (chat["message"]["content"], chat["done_reason"]) == ("SELECT 1", "stop")


@ollama
def test_both_servers_render_a_conversation_the_same(
    converted: Converted, llama: LlamaServer, ollama_server: OllamaServer
) -> None:
    with httpx.Client(base_url=ollama_server.endpoint, timeout=60, trust_env=False) as http:
        name = next(iter(ModelManagement(http).digests("/api/tags")))
        body = {"model": name, "messages": CONVERSATION, "stream": False, "_debug_render_only": True}
        rendered = http.post("/api/chat", json=body).json()["_debug_info"]["rendered_template"]
    assert rendered == rendered_by_llama(llama, CONVERSATION)
    first = converted.prompt(SCHEMA) + "SELECT 1" + converted.template.after_answer
    assert rendered.startswith(first) and "And now?" in rendered[len(first) :]
