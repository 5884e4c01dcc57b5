"""The tokenizer that is built from a GGUF file gives the tokens that llama.cpp itself gives, for each pre-tokenizer."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from chatmetrics.components.base_model.from_gguf import pre_tokenizers
from chatmetrics.components.base_model.from_gguf.gguf_file import read_gguf
from chatmetrics.components.base_model.from_gguf.tokenizer import GgufTokenizer
from chatmetrics.components.convert.llama_cpp import known_name
from chatmetrics.components.inference.server import LlamaServer
from tests.base_model.converter import converted
from tests.base_model.gguf_bases import BOS, EOS, write_gguf
from tests.base_model.texts import corpus
from tests.models import random_base

NAMES = list(pre_tokenizers.PRE_TOKENIZERS)
TOKENIZER = os.environ.get("CHATMETRICS_TOKENIZER_DIR", "")
# Files that differ in what is added to a text. By default llama-bpe adds BOS, and the others add nothing.
ADDING = {
    "gpt-2": {"tokenizer.ggml.add_eos_token": True},
    "qwen2": {"tokenizer.ggml.add_bos_token": True},
    "deepseek-r1-qwen": {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("files")

    def file(name: str) -> Path:
        path = folder / f"{name}.gguf"
        return path if path.exists() else write_gguf(path, name, options=ADDING.get(name))

    return file


def texts_of(content: dict[str, Any]) -> list[str]:
    return corpus([token["content"] for token in content["added_tokens"]])


def tokens_of_llama_cpp(gguf: Path, texts: list[str]) -> list[list[int]]:
    with LlamaServer(gguf, context_length=64) as server, httpx.Client(trust_env=False, timeout=60) as client:

        def tokens(text: str) -> list[int]:
            request = {"content": text, "add_special": True, "parse_special": True}
            answer = client.post(f"{server.endpoint}/tokenize", json=request).raise_for_status()
            return list(answer.json()["tokens"])

        return [tokens(text) for text in texts]


def differing(content: dict[str, Any], texts: list[str], expected: list[list[int]]) -> list[str]:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return [text for text, ids in zip(texts, expected, strict=True) if tokenizer.encode(text).ids != ids]


@pytest.fixture(scope="module")
def compared(
    files: Callable[[str], Path],
) -> Iterator[Callable[[str], tuple[dict[str, Any], list[str], list[list[int]]]]]:
    """For a pre-tokenizer: the tokenizer.json that is built, the texts, and llama.cpp's tokens of them."""
    known: dict[str, tuple[dict[str, Any], list[str], list[list[int]]]] = {}

    def compare(name: str) -> tuple[dict[str, Any], list[str], list[list[int]]]:
        if name not in known:
            content = GgufTokenizer(read_gguf(files(name))).files()["tokenizer.json"]
            known[name] = (content, texts_of(content), tokens_of_llama_cpp(files(name), texts_of(content)))
        return known[name]

    yield compare


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_each_pre_tokenizer_gives_the_tokens_of_llama_cpp(name: str, compared: Any) -> None:
    content, texts, expected = compared(name)
    assert len(texts) > 400 and max(map(len, expected)) > 50
    assert differing(content, texts, expected) == []


def without_digits(content: dict[str, Any]) -> None:
    del content["pre_tokenizer"]["pretokenizers"][0]


def without_missing_bytes(content: dict[str, Any]) -> None:
    assert content["pre_tokenizer"]["pretokenizers"].pop()["type"] == "Split"


def with_merges(content: dict[str, Any]) -> None:
    content["model"]["ignore_merges"] = not content["model"]["ignore_merges"]


def with_normalizer(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "NFC"}


def without_added(content: dict[str, Any]) -> None:
    content["post_processor"] = None


def without(token: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["added_tokens"] = [added for added in content["added_tokens"] if added["content"] != token]

    return change


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("smollm", without_digits),
        ("smollm", without_missing_bytes),
        ("gpt-2", without_added),
        ("gpt-2", without("</s>")),
        ("gpt-2", without("    ")),
        ("qwen2", with_normalizer),
        ("llama-bpe", without_added),
        ("llama-bpe", with_merges),
        ("deepseek-r1-qwen", without("<tool_call>")),
    ],
)
def test_the_texts_show_a_difference_of_one_part(
    name: str, change: Callable[[dict[str, Any]], None], compared: Any
) -> None:
    content, texts, expected = compared(name)
    changed = json.loads(json.dumps(content))
    change(changed)
    assert differing(changed, texts, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_converter_recognizes_the_tokenizer_that_was_built(
    name: str, files: Callable[[str], Path], tmp_path: Path
) -> None:
    for file, content in GgufTokenizer(read_gguf(files(name))).files().items():
        (tmp_path / file).write_text(json.dumps(content), "utf-8")
    assert pre_tokenizers.PRE_TOKENIZERS[known_name(tmp_path)] == pre_tokenizers.PRE_TOKENIZERS[name]


def test_special_tokens_have_the_roles_that_the_file_gives_them(files: Callable[[str], Path]) -> None:
    built = GgufTokenizer(read_gguf(files("llama-bpe"))).files()
    config = built["tokenizer_config.json"]
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == (BOS, EOS, True)
    assert "message.content" in config["chat_template"] and "pad_token" not in config
    special = {token["content"]: token["special"] for token in built["tokenizer.json"]["added_tokens"]}
    assert special == {
        "<|endoftext|>": True,
        BOS: True,
        EOS: True,
        "<tool_call>": False,
        "    ": False,
        "</s>": True,
        "<|x|>": True,
    }
    assert "[PAD]" not in built["tokenizer.json"]["model"]["vocab"]


@pytest.mark.exhaustive
@pytest.mark.skipif(not TOKENIZER, reason="CHATMETRICS_TOKENIZER_DIR is not set")
def test_the_tokenizer_of_deepseek_r1_distill_qwen_survives_conversion_to_gguf(tmp_path: Path) -> None:
    base = random_base(tmp_path / "base", Path(TOKENIZER), hidden=32, layers=1)
    gguf = converted(base, tmp_path / "base.gguf", "f16")
    content = GgufTokenizer(read_gguf(gguf)).files()["tokenizer.json"]
    texts = texts_of(content)
    expected = tokens_of_llama_cpp(gguf, texts)
    assert differing(content, texts, expected) == []
