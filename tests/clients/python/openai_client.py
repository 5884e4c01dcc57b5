"""OpenAI's Python library."""

import json
from typing import Literal

from openai import OpenAI
from program import JSON_MODEL, MODEL, OTHER_MODEL, QUESTION, STOP, SYSTEM, TOKENS, TOOL, run
from pydantic import BaseModel


class Report(BaseModel):
    sql: Literal["SELECT 1"]


def client(url, token):
    return OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)


def chat(url, token, model=MODEL, before=(), **options):
    messages = [*before, {"role": "user", "content": QUESTION}]
    answer = client(url, token).chat.completions.create(model=model, messages=messages, **options)
    return answer.choices[0].message.content


def stream(url, token):
    messages = [{"role": "user", "content": QUESTION}]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client(url, token).chat.completions.create(model=MODEL, messages=messages, **options))
    assert chunks[-1].usage.completion_tokens > 0
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]


def schema(url, token):
    messages = [{"role": "user", "content": QUESTION}]
    answer = client(url, token).chat.completions.parse(model=MODEL, messages=messages, response_format=Report)
    return answer.choices[0].message.parsed.model_dump()


run(
    "openai-python",
    "openai",
    {
        "list": lambda *to: [model.id for model in client(*to).models.list()],
        "show": lambda *to: client(*to).models.retrieve(MODEL).id,
        "complete": lambda *to: client(*to).completions.create(model=MODEL, prompt=QUESTION).choices[0].text,
        "chat": chat,
        "stream": stream,
        "json": lambda *to: json.loads(chat(*to, JSON_MODEL, response_format={"type": "json_object"})),
        "schema": schema,
        "tokens": lambda *to: chat(*to, temperature=0, seed=1, max_completion_tokens=TOKENS),
        "stop": lambda *to: chat(*to, temperature=0, top_p=0.9, max_tokens=64, stop=[STOP]),
        "system": lambda *to: chat(*to, before=[{"role": "system", "content": SYSTEM}]),
        "developer": lambda *to: chat(*to, before=[{"role": "developer", "content": SYSTEM}]),
        "wrong_token": chat,
        "unknown_model": lambda *to: chat(*to, OTHER_MODEL),
        "embeddings": lambda *to: client(*to).embeddings.create(model=MODEL, input=QUESTION).data[0].embedding,
        "tools": lambda *to: chat(*to, tools=[TOOL]),
    },
)
