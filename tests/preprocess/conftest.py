"""A small source of questions, and a small tokenizer."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from tests.models import CHAT_TEMPLATE

SPECIAL_TOKENS = ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>"]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a byte-level BPE tokenizer with DeepSeek's special tokens, which prepends BOS."""
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(["SELECT count(*) FROM"], trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=300))
    bpe.add_special_tokens(SPECIAL_TOKENS)
    bos = SPECIAL_TOKENS[-1]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, bpe.token_to_id(bos))]
    )
    # A truncation that was saved with the tokenizer must not affect the counts.
    bpe.enable_truncation(8)
    bpe.save(str(folder / "tokenizer.json"))
    config = {"bos_token": bos, "eos_token": SPECIAL_TOKENS[0], "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A source in the format jsonl: train.jsonl, dev.jsonl and the database of a shop."""
    folder = tmp_path / "shop"
    (folder / "databases" / "shop").mkdir(parents=True)
    with closing(sqlite3.connect(folder / "databases" / "shop" / "shop.sqlite")) as connection:
        connection.executescript(
            """
            CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL);
            CREATE TABLE sale (id INTEGER PRIMARY KEY, item_id INT REFERENCES item, day DATE);
            INSERT INTO item VALUES (1, 'tea', 2.5), (2, '茶', 3);
            INSERT INTO sale VALUES (1, 1, '2024-05-01');
            """
        )
    training = [
        ("How many items are there?", "SELECT count(*) FROM item"),
        ("有多少商品?", "SELECT count(*) FROM item"),
        ("Which items were never sold?", "SELECT name FROM item WHERE id NOT IN (SELECT item_id FROM sale)"),
        ("Items dearer than 100?", "SELECT name FROM item WHERE price > 100"),
        ("Who bought it?", "SELECT buyer FROM sale"),
    ]
    dev = [("Days on which tea was sold?", "SELECT day FROM sale JOIN item ON item_id = item.id WHERE name = 'tea'")]
    for name, pairs in (("train", training), ("dev", dev)):
        records = ({"question": question, "sql": sql, "db_id": "shop"} for question, sql in pairs)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
