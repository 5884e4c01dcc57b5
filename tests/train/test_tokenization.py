import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.train.data.tokenization import load_tokenizer, tokenize
from chatmetrics.components.train.data.trees import Pack, TokenizedExample, padded_pack, tree_pack
from tests.models import BOS, EOS, tiny_base
from tests.train.small_dataset import example


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base")


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**content, **changes}, ensure_ascii=False), "utf-8")


def test_the_loss_covers_the_answer_and_one_eos(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    item = example(1, "上海")
    [tokens] = tokenize([item], tokenizer, DEEPSEEK3)
    ids = tokens.ids.tolist()
    assert tokenizer.decode(ids[tokens.prompt_length :]) == item.sql + EOS
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    text = tokenizer.decode(ids)
    assert text.startswith(BOS + item.system) and text.endswith(f"<｜Assistant｜>{item.sql}{EOS}")


@pytest.mark.parametrize("form", [tree_pack, padded_pack])
def test_eos_is_trained_even_if_it_is_the_padding_token(
    base: Path, form: Callable[[list[TokenizedExample]], Pack]
) -> None:
    edit(base / "tokenizer_config.json", pad_token=EOS)
    tokenizer = load_tokenizer(base)
    items = list(tokenize([example(1, "Oslo"), example(2, "São Paulo")], tokenizer, DEEPSEEK3))
    assert form(items)["targets"].tolist().count(tokenizer.eos_token_id) == 2


@pytest.mark.skipif("CHATMETRICS_TOKENIZER_DIR" not in os.environ, reason="CHATMETRICS_TOKENIZER_DIR is not set")
def test_the_published_tokenizer_is_accepted(base: Path) -> None:
    folder = Path(os.environ["CHATMETRICS_TOKENIZER_DIR"])
    for path in folder.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    assert AutoConfig.from_pretrained(base).model_type == "qwen2"
    tokenizer = load_tokenizer(base)
    [tokens] = tokenize([example(1, "上海")], tokenizer, DEEPSEEK3)
    assert tokens.ids[0] == tokenizer.bos_token_id
    assert tokens.ids[tokens.prompt_length :].tolist().count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_that_transformers_reads_differently_is_refused(base: Path) -> None:
    content = json.loads((base / "tokenizer.json").read_text("utf-8"))
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,3}|\s+|\S+"
    edit(base / "tokenizer.json", **content)
    with pytest.raises(InputError, match=r"Qwen2Tokenizer.*disagrees with its own tokenizer\.json") as error:
        load_tokenizer(base)
    assert str(base) in str(error.value) and "\n" not in str(error.value)


def test_a_tokenizer_that_servers_read_differently_is_refused(base: Path) -> None:
    edit(base / "tokenizer_config.json", add_bos_token=False)
    with pytest.raises(InputError, match="add_bos_token"):
        load_tokenizer(base)


def test_a_base_without_a_fast_tokenizer_is_refused(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(base)


def test_no_padding_token_is_needed(base: Path) -> None:
    edit(base / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(base)
    [tokens] = tokenize([example(1, "Oslo")], tokenizer, DEEPSEEK3)
    assert tokens.ids.tolist().count(tokenizer.eos_token_id) == 1
    assert tokenizer.pad_token_id == tokenizer.eos_token_id  # for generating answers to dev questions in batches


def test_an_empty_answer_is_refused(base: Path) -> None:
    item = example(7, "Oslo")
    empty = type(item)(*[getattr(item, name) if name != "output" else "" for name in type(item).__slots__])
    with pytest.raises(InputError, match="example q7"):
        list(tokenize([empty], load_tokenizer(base), DEEPSEEK3))


def test_an_answer_that_contains_eos_is_refused(base: Path) -> None:
    with pytest.raises(InputError, match=r"example q3.*remove it"):
        list(tokenize([example(3, "Oslo", f"SELECT 1{EOS} SELECT 2")], load_tokenizer(base), DEEPSEEK3))
