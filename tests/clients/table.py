"""The tables of docs/clients.md, which are made from the recordings."""

from collections.abc import Iterator
from pathlib import Path

from tests.clients.uses import USES, Recording

PAGE = Path(__file__).parent.parent.parent / "docs" / "clients.md"
START, END = "<!-- clients: written by `make clients` -->", "<!-- /clients -->"
TITLES = {
    "openai-python": "openai, Python",
    "openai-javascript": "openai, JavaScript",
    "ollama-python": "ollama, Python",
    "ollama-javascript": "ollama, JavaScript",
    "ollama-go": "github.com/ollama/ollama/api, Go",
    "litellm-openai": "LiteLLM, `openai/`",
    "litellm-ollama": "LiteLLM, `ollama/` and `ollama_chat/`",
    "langchain-openai": "langchain-openai, Python",
    "langchain-ollama": "langchain-ollama, Python",
    "langchain-community": "langchain-community's Ollama, Python",
    "langchain-js-openai": "@langchain/openai, JavaScript",
    "langchain-js-ollama": "@langchain/ollama, JavaScript",
    "llama-index-openai-like": "llama-index-llms-openai-like",
    "llama-index-ollama": "llama-index-llms-ollama",
    "ai-sdk-openai-compatible": "Vercel's AI SDK, @ai-sdk/openai-compatible",
    "ai-sdk-ollama": "Vercel's AI SDK, ollama-ai-provider-v2",
    "anythingllm-openai": "AnythingLLM, Generic OpenAI",
    "anythingllm-ollama": "AnythingLLM, Ollama",
    "open-webui-openai": "Open WebUI, OpenAI",
    "open-webui-ollama": "Open WebUI, Ollama",
    "continue-openai": "Continue, `provider: openai`",
    "continue-ollama": "Continue, `provider: ollama`",
}


def tables(recordings: list[Recording]) -> str:
    """The table of clients, and the table of messages, in Markdown."""
    return "\n".join([*_clients(recordings), "", *_messages(recordings)])


def _clients(recordings: list[Recording]) -> Iterator[str]:
    yield "| client | version | works | refused |"
    yield "|---|---|---|---|"
    for client, title in TITLES.items():
        of_client = {recording.use: recording for recording in recordings if recording.client == client}
        version = next(iter(of_client.values())).version
        works, refused = (
            ", ".join(
                use.title
                for name, use in USES.items()
                if name in of_client and bool(of_client[name].error) is is_refused
            )
            for is_refused in (False, True)
        )
        yield f"| {title} | {version} | {works} | {refused} |"


def _messages(recordings: list[Recording]) -> Iterator[str]:
    yield "| refused | status | message of the pod | clients that do not show it |"
    yield "|---|---|---|---|"
    for name, use in USES.items():
        messages: dict[tuple[int, str], list[str]] = {}
        for recording in recordings:
            if recording.use == name and recording.error:
                last = recording.requests[-1]
                hidden = messages.setdefault((last["status"], last["error"]), [])
                if last["error"] not in recording.error:
                    hidden.append(f"{TITLES[recording.client]} (`{recording.error.splitlines()[0]}`)")
        for (status, message), hidden in messages.items():
            yield f"| {use.title} | {status} | {message} | {'; '.join(hidden)} |"


def page_with(content: str) -> str:
    """The page with new tables."""
    before, _, rest = PAGE.read_text("utf-8").partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{content}\n{END}{after}"
