"""LiteLLM with its providers for OpenAI's and for Ollama's protocol."""

import json
from functools import partial

import litellm
from program import JSON_MODEL, MODEL, OTHER_MODEL, QUESTION, SCHEMA, STOP, SYSTEM, TOKENS, TOOL, run

RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA, "strict": True}}


def chat(provider, url, token, model=MODEL, before=(), **options):
    base = f"{url}/v1" if provider == "openai" else url
    messages = [*before, {"role": "user", "content": QUESTION}]
    return litellm.completion(f"{provider}/{model}", messages, api_base=base, api_key=token, max_retries=0, **options)


def text(*to, **options):
    return chat(*to, **options).choices[0].message.content


def stream(*to):
    return [chunk.choices[0].delta.content or "" for chunk in chat(*to, stream=True)]


def embeddings(provider, url, token):
    base, provider = (f"{url}/v1", "openai") if provider == "openai" else (url, "ollama")
    answer = litellm.embedding(f"{provider}/{MODEL}", [QUESTION], api_base=base, api_key=token, max_retries=0)
    return answer.data[0]["embedding"]


def uses(provider):
    ask = partial(text, provider)
    return {
        "chat": ask,
        "stream": partial(stream, provider),
        "json": lambda *to: json.loads(ask(*to, JSON_MODEL, response_format={"type": "json_object"})),
        "schema": lambda *to: json.loads(ask(*to, response_format=RESPONSE_FORMAT)),
        "tokens": lambda *to: ask(*to, temperature=0, max_tokens=TOKENS),
        "stop": lambda *to: ask(*to, temperature=0, top_p=0.9, stop=[STOP]),
        "system": lambda *to: ask(*to, before=[{"role": "system", "content": SYSTEM}]),
        "developer": lambda *to: ask(*to, before=[{"role": "developer", "content": SYSTEM}]),
        "wrong_token": ask,
        "unknown_model": lambda *to: ask(*to, OTHER_MODEL),
        "embeddings": partial(embeddings, provider),
        "tools": lambda *to: ask(*to, tools=[TOOL]),
    }


run("litellm-openai", "litellm", uses("openai"))
run(
    "litellm-ollama",
    "litellm",
    {
        "complete": partial(text, "ollama"),  # this provider of LiteLLM uses /api/generate
        **uses("ollama_chat"),
        "keep_alive": lambda *to: text("ollama_chat", *to, num_ctx=4096, keep_alive="10m"),
    },
)
