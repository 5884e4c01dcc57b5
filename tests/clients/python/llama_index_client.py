"""LlamaIndex's packages for Ollama and for servers with OpenAI's protocol."""

import json
from functools import partial
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike
from ollama import Client
from program import JSON_MODEL, MODEL, OTHER_MODEL, QUESTION, STOP, SYSTEM, TOKENS, run
from pydantic import BaseModel


class Report(BaseModel):
    sql: Literal["SELECT 1"]


def ollama(url, token, model=MODEL, context_window=-1, **options):
    client = Client(host=url, headers={"Authorization": f"Bearer {token}"})
    return Ollama(model=model, base_url=url, client=client, context_window=context_window, **options)


def openai(url, token, model=MODEL, **options):
    return OpenAILike(
        model=model,
        api_base=f"{url}/v1",
        api_key=token,
        is_chat_model=True,
        max_retries=0,
        context_window=512,
        **options,
    )


def chat(llm, role="user", **options):
    before = [] if role == "user" else [ChatMessage(role=role, content=SYSTEM)]
    return llm.chat([*before, ChatMessage(role="user", content=QUESTION)], **options).message.content


def stream(llm):
    return [part.delta for part in llm.stream_chat([ChatMessage(role="user", content=QUESTION)])]


def common(llm):
    return {
        "complete": lambda *to: llm(*to).complete(QUESTION).text,
        "chat": lambda *to: chat(llm(*to)),
        "stream": lambda *to: stream(llm(*to)),
        "schema": lambda *to: llm(*to).as_structured_llm(Report).complete(QUESTION).raw.model_dump(),
        "system": lambda *to: chat(llm(*to), "system"),
        "developer": lambda *to: chat(llm(*to), "developer"),
        "wrong_token": lambda *to: chat(llm(*to)),
        "unknown_model": lambda *to: chat(llm(*to, OTHER_MODEL)),
    }


run(
    "llama-index-ollama",
    "llama-index-llms-ollama",
    {
        "show": lambda *to: ollama(*to).metadata.context_window,
        **common(ollama),
        "json": lambda *to: json.loads(chat(ollama(*to, JSON_MODEL, json_mode=True))),
        "tokens": lambda *to: chat(ollama(*to, context_window=4096, additional_kwargs={"num_predict": TOKENS})),
        "stop": lambda *to: chat(ollama(*to, temperature=0, additional_kwargs={"stop": [STOP]})),
        "keep_alive": lambda *to: chat(ollama(*to, keep_alive="10m")),
    },
)
run(
    "llama-index-openai-like",
    "llama-index-llms-openai-like",
    {
        **common(partial(openai, should_use_structured_outputs=True)),
        "json": lambda *to: json.loads(chat(openai(*to, JSON_MODEL), response_format={"type": "json_object"})),
        "tokens": lambda *to: chat(openai(*to, temperature=0, max_tokens=TOKENS)),
        "stop": lambda *to: chat(openai(*to, temperature=0), stop=[STOP]),
    },
)
