"""Ollama's Python library."""

import json

from ollama import Client
from program import JSON_MODEL, MODEL, OTHER_MODEL, QUESTION, SCHEMA, STOP, SYSTEM, TOKENS, TOOL, run


def client(url, token):
    return Client(host=url, headers={"Authorization": f"Bearer {token}"})


def chat(url, token, model=MODEL, before=(), **options):
    messages = [*before, {"role": "user", "content": QUESTION}]
    return client(url, token).chat(model=model, messages=messages, **options).message.content


def stream(url, token):
    messages = [{"role": "user", "content": QUESTION}]
    return [part.message.content for part in client(url, token).chat(model=MODEL, messages=messages, stream=True)]


def show(url, token):
    shown = client(url, token).show(MODEL)
    return next(value for name, value in shown.modelinfo.items() if name.endswith(".context_length"))


run(
    "ollama-python",
    "ollama",
    {
        "list": lambda *to: [model.model for model in client(*to).list().models],
        "show": show,
        "complete": lambda *to: client(*to).generate(MODEL, QUESTION, system=SYSTEM).response,
        "chat": chat,
        "stream": stream,
        "json": lambda *to: json.loads(chat(*to, JSON_MODEL, format="json")),
        "schema": lambda *to: json.loads(chat(*to, format=SCHEMA)),
        "tokens": lambda *to: chat(*to, options={"temperature": 0, "num_ctx": 4096, "num_predict": TOKENS}),
        "stop": lambda *to: chat(*to, options={"temperature": 0, "seed": 1, "stop": [STOP]}),
        "system": lambda *to: chat(*to, before=[{"role": "system", "content": SYSTEM}]),
        "developer": lambda *to: chat(*to, before=[{"role": "developer", "content": SYSTEM}]),
        "keep_alive": lambda *to: chat(*to, keep_alive="10m"),
        "wrong_token": chat,
        "unknown_model": lambda *to: chat(*to, OTHER_MODEL),
        "embeddings": lambda *to: client(*to).embed(MODEL, QUESTION).embeddings,
        "tools": lambda *to: chat(*to, tools=[TOOL]),
    },
)
