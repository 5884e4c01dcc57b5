"""Check that llama.cpp splits text into the same tokens as the tokenizer that the model was trained with."""

from pathlib import Path

import httpx
from tokenizers import Tokenizer

from chatmetrics.components.errors import InputError
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate

CONTEXT = 512
SCHEMA = (
    "CREATE TABLE hotel (\n  hotel_id INTEGER PRIMARY KEY,\n  name TEXT, -- '上海和平饭店', \"L'Hôtel\"\n"
    "  rating REAL DEFAULT 4.75,\n  FOREIGN KEY (city_id) REFERENCES city (city_id)\n);"
)
TEST_QUESTIONS = (
    (SCHEMA, instruction("hotel_1"), "2024年上海浦东新区评分前10的酒店订单量"),
    ("", instruction("concert_singer"), "How many singers' names don't contain 'Ann'?"),
)
TEST_TEXTS = (
    "SELECT T1.name, COUNT(*) FROM hotel AS T1 WHERE T1.price >= 1234.50 AND x != '二〇二四' GROUP BY T1.name;\n",
    "  spaces\tand\r\n\n\nlines   at the end  ",
    "０１２ ½ ①②③ 12345678901 é ü 🚀 ， 。？！「」 （北京）",
)


def check_tokens(gguf: Path, model: Path, template: PromptTemplate) -> None:
    """Compare token ids, with and without BOS, on texts in Chinese and English with digits, SQL and special tokens.

    Also checks that llama.cpp ends an answer at the template's token.

    Args:
        gguf: the converted model; it is loaded by llama.cpp's server for this.
        model: the Hugging Face folder that it was converted from.
        template: the template of the model's prompts.

    Raises:
        InputError: the ids differ, or an answer does not end.
        ServiceError: the server does not load the model.
    """
    # tokenizer.json is read without transformers, which takes seconds to import. Training refuses a model whose
    # AutoTokenizer differs from this file.
    path = model / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: save the model's fast tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    with LlamaServer(gguf, context_length=CONTEXT) as server, httpx.Client(trust_env=False, timeout=60) as client:
        for text in (*(template.prompt(*question) for question in TEST_QUESTIONS), *TEST_TEXTS):
            for special in (True, False):
                request = {"content": text, "add_special": special, "parse_special": True}
                answer = client.post(f"{server.endpoint}/tokenize", json=request).raise_for_status().json()
                expected = list(tokenizer.encode(text, add_special_tokens=special).ids)
                if answer["tokens"] != expected:
                    raise InputError(_difference(gguf, text, answer["tokens"], expected))
        end = tokenizer.token_to_id(template.stop) if template.stop.strip() else None
        if end is not None:
            # The bias makes it the only token that can follow.
            forced = {"prompt": "SELECT 1", "n_predict": 2, "temperature": 0, "logit_bias": [[end, 1e9]]}
            answer = client.post(f"{server.endpoint}/completion", json=forced).raise_for_status().json()
            if answer["stop_type"] != "eos":
                raise InputError(
                    f"{gguf.name}: llama.cpp does not end an answer at {template.stop!r}, the end of an answer in the "
                    f"template {template.name}; set preprocess.template to a template whose end is the base's EOS, "
                    "or to plain"
                )


def _difference(gguf: Path, text: str, found: list[int], expected: list[int]) -> str:
    pairs = zip(found, expected, strict=False)
    place = next((i for i, (left, right) in enumerate(pairs) if left != right), min(len(found), len(expected)))
    return (
        f"{gguf.name}: llama.cpp and the model's tokenizer split {text[:40]!r}... differently, at token {place} "
        f"{found[place : place + 3]} instead of {expected[place : place + 3]}; its answers would be wrong. "
        "Use a base model whose tokenizer llama.cpp supports"
    )
