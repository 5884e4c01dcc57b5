"""Texts on which tokenizers are compared: real questions and schemas, and odd characters in random order."""

import json
import os
import random
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from chatmetrics.components.convert.tokenizer_check import TEST_TEXTS

SPIDER, CSPIDER = os.environ.get("CHATMETRICS_SPIDER_DIR", ""), os.environ.get("CHATMETRICS_CSPIDER_FILE", "")
WRITTEN = (
    "",
    " ",
    "\n",
    "０１２ ½ ①②③ ⅷ ٣٤٥ 12345678901 3.14 1e-4 2024年1月1日",
    "🚀🚀 👩‍👩‍👧‍👦 🇨🇳 ✅ 🦙🦙 ☁️ e\u0301 é ﬁ Å Å ſ 'ſ K 'K",
    "I'm you'RE they've 'S 'T 'LL 'd 'D ''s don't DON'T it's\u2019s",
    "a  b   c    d\t\te\n\n\nf \n g\r\nh\r\r\n i \u00a0 j\u3000k\u2028l\u0085m\u200bn\ufeffo",
    " leading and trailing  \n ",
    "\x00\x01\x02\x03\x04a\x04b-\x04-\x05\x06\x07\x08\x0b\x0c\x0e\x13\x14\x16\x1b\x1d\x1e\x1f\x7f",
    "\U000f1234\U0010ffff\U00050000 \ue000 \ufffd \U0001f9ff",
    "SELECT T1.name,COUNT(*)FROM a AS T1 WHERE x>=1.50 AND y<>'L''Hôtel'--\n;/* */\t)](}{[(",
    "____ ---- ==== #### .... ,,,, !!!??? ''''\"\"\"\" \\\\ //// ~~~ @@@ $$$ %%% ^^^ &&& ***",
)
PARTS = (
    *"  \t\n\r'\"",
    "  ",
    "\r\n",
    "'s",
    "'S",
    "'ll",
    "'VE",
    "1",
    "23",
    "4567",
    "½",
    "０",
    "a",
    "Bc",
    "def",
    "上海",
    "é",
)


UNMERGED = "zqx"  # a token of the test vocabularies that no merge leads to


def corpus(special: list[str], seed: int = 0) -> list[str]:
    """The texts; the random ones contain the special tokens too. Spider's and CSpider's are there if they are."""
    return [*TEST_TEXTS, *WRITTEN, f"{UNMERGED}\n{UNMERGED}", *_real(), *_random(special, seed)]


def _real() -> Iterator[str]:
    if SPIDER:
        for name in ("dev.json", "tables.json"):
            path = next(Path(SPIDER).glob(f"**/{name}"))
            yield from _grouped(_strings(json.loads(path.read_bytes())))
        ddl = sorted(Path(SPIDER).glob("**/schema.sql"))
        yield from (path.read_text("utf-8", errors="replace") for path in ddl[:40])
    if CSPIDER:
        yield from _grouped(_strings(json.loads(Path(CSPIDER).read_bytes())))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _grouped(strings: Iterator[str]) -> Iterator[str]:
    different = list(dict.fromkeys(strings))
    yield from ("\n".join(different[start : start + 100]) for start in range(0, len(different), 100))


def _random(special: list[str], seed: int) -> Iterator[str]:
    # Only characters that Python's Unicode 14 has: of later ones, llama.cpp and tokenizers know different numbers.
    known = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    source = random.Random(seed)
    common = [letter for letter in known if ord(letter) < 0x3100]
    for _ in range(400):
        pools = (PARTS, common, known, special)
        chosen = source.choices(pools, weights=(6, 3, 1, 0.3 if special else 0), k=source.randrange(1, 60))
        yield "".join(source.choice(pool) for pool in chosen)
