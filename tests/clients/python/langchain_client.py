"""LangChain's packages for OpenAI and Ollama, and the older class of langchain-community."""

import json
import warnings

from langchain_community.embeddings.ollama import OllamaEmbeddings as CommunityEmbeddings
from langchain_community.llms.ollama import Ollama
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from program import JSON_MODEL, MODEL, OTHER_MODEL, QUESTION, SCHEMA, STOP, SYSTEM, TOKENS, TOOL, run

warnings.simplefilter("ignore")  # langchain-community's class is deprecated


def openai(url, token, model=MODEL, **options):
    return ChatOpenAI(model=model, base_url=f"{url}/v1", api_key=token, max_retries=0, **options)


def ollama(url, token, model=MODEL, kind=ChatOllama, **options):
    headers = {"headers": {"Authorization": f"Bearer {token}"}}
    return kind(model=model, base_url=url, client_kwargs=headers, **options)


def community(url, token, model=MODEL, **options):
    return Ollama(model=model, base_url=url, headers={"Authorization": f"Bearer {token}"}, **options)


def content(answer):
    return answer if isinstance(answer, str) else answer.content


def text(model):
    return content(model.invoke(QUESTION))


def stream(model):
    return [content(chunk) for chunk in model.stream(QUESTION)]


def developer(model):
    return model.invoke([{"role": "developer", "content": SYSTEM}, {"role": "user", "content": QUESTION}]).content


def common(model):
    return {
        "stream": lambda *to: stream(model(*to)),
        "stop": lambda *to: text(model(*to, temperature=0, stop=[STOP])),
        "wrong_token": lambda *to: text(model(*to)),
        "unknown_model": lambda *to: text(model(*to, OTHER_MODEL)),
    }


run(
    "langchain-openai",
    "langchain-openai",
    {
        "chat": lambda *to: text(openai(*to)),
        **common(openai),
        "system": lambda *to: openai(*to).invoke([SystemMessage(SYSTEM), HumanMessage(QUESTION)]).content,
        "json": lambda *to: json.loads(text(openai(*to, JSON_MODEL).bind(response_format={"type": "json_object"}))),
        "schema": lambda *to: openai(*to).with_structured_output(SCHEMA, method="json_schema").invoke(QUESTION),
        "tokens": lambda *to: text(openai(*to, temperature=0, max_tokens=TOKENS)),
        "developer": lambda *to: developer(openai(*to)),
        "embeddings": lambda url, token: OpenAIEmbeddings(
            model=MODEL, base_url=f"{url}/v1", api_key=token, max_retries=0, check_embedding_ctx_length=False
        ).embed_query(QUESTION),
        "tools": lambda *to: text(openai(*to).bind_tools([TOOL])),
    },
)
run(
    "langchain-ollama",
    "langchain-ollama",
    {
        "chat": lambda *to: text(ollama(*to)),
        **common(ollama),
        "system": lambda *to: ollama(*to).invoke([SystemMessage(SYSTEM), HumanMessage(QUESTION)]).content,
        "complete": lambda *to: text(ollama(*to, kind=OllamaLLM)),
        "json": lambda *to: json.loads(text(ollama(*to, JSON_MODEL, format="json"))),
        "schema": lambda *to: ollama(*to).with_structured_output(SCHEMA, method="json_schema").invoke(QUESTION),
        "tokens": lambda *to: text(ollama(*to, temperature=0, num_ctx=4096, num_predict=TOKENS)),
        "keep_alive": lambda *to: text(ollama(*to, keep_alive="10m", validate_model_on_init=True)),
        "embeddings": lambda *to: ollama(*to, kind=OllamaEmbeddings).embed_query(QUESTION),
        "tools": lambda *to: text(ollama(*to).bind_tools([TOOL])),
    },
)
run(
    "langchain-community",
    "langchain-community",
    {
        "complete": lambda *to: text(community(*to)),
        **common(community),
        "json": lambda *to: json.loads(text(community(*to, JSON_MODEL, format="json"))),
        "tokens": lambda *to: text(community(*to, temperature=0, num_ctx=4096, num_predict=TOKENS, repeat_penalty=1)),
        "system": lambda *to: text(community(*to, system=SYSTEM)),
        "keep_alive": lambda *to: text(community(*to, keep_alive="10m")),
        "embeddings": lambda url, token: CommunityEmbeddings(
            model=MODEL, base_url=url, headers={"Authorization": f"Bearer {token}"}
        ).embed_query(QUESTION),
    },
)
