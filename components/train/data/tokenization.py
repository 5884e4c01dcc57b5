"""Turns examples into token ids, and refuses tokenizers and examples that cannot be trained on."""

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, PromptTemplate
from chatmetrics.components.train.data.trees import TokenizedExample

# The text that tokenizers are compared on: Chinese, English, digits, SQL, white space, special tokens.
PROBE = DEEPSEEK3.prompt(
    "CREATE TABLE 酒店 (id INTEGER PRIMARY KEY, name TEXT, rating REAL);\n\n\t-- it''s  -1.5e10",
    instruction("hotel_1"),
    "2024年上海浦东新区评分前10的酒店订单量? What's the naïve café's 3rd-best price, 1234567.89 €?",
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer and check that transformers reads it as other programs do.

    Converters and servers follow tokenizer.json and `add_bos_token`; transformers may build something else from the
    class that tokenizer_config.json names (huggingface/transformers#45488).

    Raises:
        InputError: tokenizer.json is missing, the two disagree, or there is no EOS token.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a base model with a fast tokenizer")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    expected, ids = Tokenizer.from_file(str(path)).encode(PROBE).ids, tokenizer(PROBE)["input_ids"]
    if ids != expected:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, expected, strict=False)))
        raise InputError(
            f"{folder}: transformers reads the tokenizer as {type(tokenizer).__name__} and disagrees with its own "
            f"tokenizer.json after {same} tokens of a test text; fix tokenizer_class in tokenizer_config.json"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: the tokenizer has no EOS token; name it in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # only for batches of prompts, whose padding is masked
    _check_bos(folder, tokenizer)
    return tokenizer


def _check_bos(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("SELECT 1")["input_ids"]  # without a template's marks, of which one can be BOS
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    starts_with_bos = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    if config.get("add_bos_token", starts_with_bos) != starts_with_bos or ids[1:].count(tokenizer.bos_token_id):
        raise InputError(
            f"{folder}: add_bos_token in tokenizer_config.json, which servers follow, disagrees with tokenizer.json "
            "about BOS; make them agree, or the model is served other prompts than it was trained on"
        )
    if ids[-1] == tokenizer.eos_token_id:
        raise InputError(
            f"{folder}: the tokenizer appends EOS to every prompt; remove that from the post-processor in "
            "tokenizer.json"
        )


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: PromptTemplate
) -> Iterator[TokenizedExample]:
    """Yield the token ids of each example: the prompt with BOS as a server sends it, then the answer and its end.

    Prompt and answer are tokenized separately, because a served model generates the answer after the prompt's tokens.

    Raises:
        InputError: the template is not for this tokenizer, or an example's answer is empty or contains the text that
            ends answers; names the example.
    """
    end = ends_of_answers(tokenizer, template)[0]
    prompts = tokenizer([template.prompt(item.system, item.instruction, item.input) for item in examples])["input_ids"]
    if prompts and tokenizer.bos_token_id is not None and prompts[0][:2] == [tokenizer.bos_token_id] * 2:
        raise InputError(
            f"the dataset's prompts begin with {tokenizer.bos_token}, which the base's tokenizer adds too; run "
            "preprocess with this base's tokenizer"
        )
    answers = tokenizer([item.output for item in examples], add_special_tokens=False)["input_ids"]
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        if not answer:
            raise InputError(f"example {example.id}: its answer is empty; give it an answer")
        if tokenizer.eos_token_id in answer:
            raise InputError(f"example {example.id}: its answer contains {tokenizer.eos_token}; remove it")
        if template.stop and template.stop in example.output:
            raise InputError(
                f"example {example.id}: its answer contains {template.stop!r}, at which servers would end it; remove "
                "it, or set preprocess.template to another template"
            )
        yield TokenizedExample(np.array([*prompt, *answer, end], dtype=np.int32), len(prompt))


def ends_of_answers(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> list[int]:
    """The tokens that end an answer: first the one that the model learns, the template's or else EOS.

    Raises:
        InputError: the template's is not a token of the base.
    """
    if not template.stop.strip():
        return [tokenizer.eos_token_id]
    end = tokenizer.get_added_vocab().get(template.stop)
    if end is None:
        raise InputError(
            f"the dataset's prompt template {template.name} ends an answer with {template.stop!r}, which is not a "
            "special token of the base; run preprocess with this base's tokenizer and preprocess.template=auto"
        )
    return list(dict.fromkeys([end, tokenizer.eos_token_id]))
