"""Tokenization of all of Spider, compared with the tokenizer alone, and the start-up time of `datasets`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.nl2sql.prompts.template import dataset_template
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.train.data.token_cache import tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer, tokenize

SPIDER, TOKENIZER = (os.environ.get(f"CHATMETRICS_{name}_DIR", "") for name in ("SPIDER", "TOKENIZER"))

pytestmark = pytest.mark.skipif(
    not (SPIDER and TOKENIZER), reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_TOKENIZER_DIR is not set"
)


def test_bench_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset, base = tmp_path / "dataset", Path(TOKENIZER)
    preprocess(PreprocessSettings(source=SPIDER, tokenizer=TOKENIZER, workers=2), dataset)
    tokenizer, sha256 = load_tokenizer(base), sha256_of(dataset / "train.jsonl")
    examples, template = read_examples(dataset / "train.jsonl"), dataset_template(dataset)
    times = []
    for work in (
        lambda: list(tokenize(examples, tokenizer, template)),
        lambda: tokenized(dataset, sha256, base, tokenizer, 2048),
        lambda: tokenized(dataset, sha256, base, tokenizer, 2048),
        lambda: list(tokenized(dataset, sha256, base, tokenizer, 2048)),
    ):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    alone, first, cached, read = times
    print(f"\n{len(examples)} examples: {alone:.2f} s tokenized alone, {first:.2f} s with the Arrow file written")
    print(f"{cached:.2f} s when they are cached, {read - cached:.2f} s to read each once")
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import datasets"], check=True)
    whole = time.perf_counter() - started
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    print(f"import datasets: {whole - (time.perf_counter() - started):.2f} s more than import numpy")
