"""Training with each prompt template: the tokens are those of the chat template, and trees compute the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.prompts.chat_template import choose_template
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, TEMPLATES, PromptTemplate, TemplateName
from chatmetrics.components.nl2sql.prompts.token_counter import load_counter
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.train.data.token_cache import tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer, tokenize
from chatmetrics.components.train.data.trees import padded_pack, shared_prefix_length, tree_pack
from chatmetrics.components.train.model.answer_loss import give_answer_loss
from tests.base_tokenizers import BASES, write_base, write_tokenizer
from tests.train.small_dataset import CITIES, example, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
each_base = pytest.mark.parametrize("base", BASES)


def own_template(folder: Path) -> PromptTemplate:
    return choose_template("auto", folder, "preprocess.template")


def named(dataset: Path, template: PromptTemplate) -> Path:
    (dataset / "dataset_card.json").write_text(json.dumps({"prompt_template": template.text}), "utf-8")
    return dataset


@each_base
def test_an_example_has_the_tokens_of_a_conversation(base: str, tmp_path: Path) -> None:
    template = own_template(write_tokenizer(tmp_path, BASES[base]))
    item = example(1, "上海")
    [tokens] = tokenize([item], load_tokenizer(tmp_path), template)
    question = f"{item.instruction}\n{item.input}"
    # Llama's and Gemma's chat templates trim messages; ours keeps the schema's last line break.
    messages = [{"role": "system", "content": item.system}, {"role": "user", "content": question}]
    if base == "gemma":  # has no system role
        messages = [{"role": "user", "content": f"{item.system}\n\n{question}"}]
    messages.append({"role": "assistant", "content": item.output})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    if base == "llama3":
        tokenizer.chat_template = tokenizer.chat_template.replace("message['content'] | trim", "message['content']")
    expected = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    ids = tokens.ids.tolist()
    assert ids == expected[: len(ids)]
    assert tokenizer.decode(expected[len(ids) :]).strip() == ""  # line breaks before the next turn
    end = template.stop or BASES[base].eos
    assert tokenizer.decode(ids[tokens.prompt_length :]) == item.output + end
    assert tokenizer.convert_tokens_to_ids(end) == ids[-1]


@each_base
@pytest.mark.parametrize("name", ["auto", "plain"])
def test_examples_are_counted_as_they_are_trained_on(base: str, name: TemplateName, tmp_path: Path) -> None:
    template = choose_template(name, write_tokenizer(tmp_path, BASES[base]), "preprocess.template")
    counter, without_bos = load_counter(tmp_path, template), not BASES[base].adds_bos
    items = [example(number, city) for number, city in enumerate(CITIES)]
    items += [replace(item, system="") for item in items]
    for item, tokens in zip(items, tokenize(items, load_tokenizer(tmp_path), template), strict=True):
        assert counter.count(item) == len(tokens.ids) + without_bos  # a BOS is always counted


@each_base
def test_examples_about_a_schema_share_its_tokens_and_a_tree_computes_the_same(base: str, tmp_path: Path) -> None:
    folder = write_base(tmp_path, BASES[base])
    template, tokenizer = own_template(folder), load_tokenizer(folder)
    items = list(tokenize([example(number, city) for number, city in enumerate(CITIES)], tokenizer, template))
    item = example(0, "")
    shared = template.prompt(item.system, item.instruction, "QUESTION").partition("QUESTION")[0]
    assert shared_prefix_length(items[0].ids, items[1].ids) >= len(tokenizer(shared)["input_ids"]) - 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    give_answer_loss(model)
    tree, padded = tree_pack(items), padded_pack(items)
    assert tree["input_ids"].numel() < padded["input_ids"].numel() / 2
    with torch.no_grad():
        losses = [model(**pack) for pack in (tree, padded)]
    assert losses[0].numel() == losses[1].numel() > 0
    torch.testing.assert_close(losses[0].sum(), losses[1].sum(), rtol=1e-5, atol=1e-4)


def test_plain_answers_end_with_eos_and_have_no_blank_line(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, BASES["smollm2"]))
    [tokens] = tokenize([example(1, "Oslo")], tokenizer, TEMPLATES["plain"])
    assert tokens.ids[-1] == tokenizer.eos_token_id
    with pytest.raises(InputError, match=r"example q3: its answer contains '\\n\\n', at which servers would end it"):
        list(tokenize([example(3, "Oslo", "SELECT 1\n\nFROM x")], tokenizer, TEMPLATES["plain"]))


def test_a_base_without_the_end_of_an_answer_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, BASES["qwen"]))
    with pytest.raises(InputError, match=r"gemma ends an answer with '<end_of_turn>', which is not a special token"):
        list(tokenize([example(1, "Oslo")], tokenizer, TEMPLATES["gemma"]))


def test_two_bos_are_refused(tmp_path: Path) -> None:
    template = PromptTemplate.parse("<bos>" + TEMPLATES["gemma"].text)
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, BASES["gemma"]))
    with pytest.raises(InputError, match="begin with <bos>, which the base's tokenizer adds too"):
        list(tokenize([example(1, "Oslo")], tokenizer, template))


def test_tokens_are_cached_by_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base, dataset = write_tokenizer(tmp_path / "base", BASES["smollm2"]), write_dataset(tmp_path / "dataset")
    tokenizer, sha256 = load_tokenizer(base), sha256_of(dataset / "train.jsonl")
    ids = [
        tokenized(named(dataset, template), sha256, base, tokenizer, 2048)[0].ids.tolist()
        for template in (TEMPLATES["chatml"], TEMPLATES["plain"], DEEPSEEK3)
    ]
    (dataset / "dataset_card.json").unlink()  # an older dataset
    assert tokenized(dataset, sha256, base, tokenizer, 2048)[0].ids.tolist() == ids[2]
    assert ids[0] != ids[1] != ids[2]
