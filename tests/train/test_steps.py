"""The order of examples, their shares and the token cache."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import write_examples
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.train.data import token_cache
from chatmetrics.components.train.data.steps import OptimizerSteps, order_by_group, order_by_length
from chatmetrics.components.train.data.token_cache import TokenizedExamples, tokenized
from chatmetrics.components.train.data.tokenization import load_tokenizer, tokenize
from chatmetrics.components.train.data.trees import padded_pack
from tests.models import tiny_base
from tests.train.small_dataset import example, write_dataset

GROUPS = np.repeat([0, 1, 2], [21, 9, 13])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chatmetrics" / "tokens"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base")


def tokenized_examples(dataset: Path, base: Path, cutoff_length: int = 512) -> TokenizedExamples:
    return tokenized(dataset, sha256_of(dataset / "train.jsonl"), base, load_tokenizer(base), cutoff_length)


def test_runs_contain_one_group_as_far_as_possible() -> None:
    order = order_by_group(GROUPS, 4, np.random.default_rng(0))
    assert sorted(order) == list(range(len(GROUPS)))
    of_one_group = sum(len(set(GROUPS[order[first : first + 4]])) == 1 for first in range(0, 40, 4))
    assert of_one_group >= 21 // 4 + 9 // 4 + 13 // 4


def test_runs_of_length_one_are_in_random_order() -> None:
    order = order_by_group(GROUPS, 1, np.random.default_rng(0))
    assert sorted(order) == list(range(len(GROUPS)))
    assert np.count_nonzero(np.diff(GROUPS[order])) > 15


def test_runs_of_similar_length() -> None:
    lengths = np.random.default_rng(1).integers(1, 1000, size=203)
    order = order_by_length(lengths, 4, np.random.default_rng(0))
    assert sorted(order) == list(range(203))
    spread = [np.ptp(lengths[order[first : first + 4]]) for first in range(0, 200, 4)]
    assert np.mean(spread) < 50


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_epoch_has_each_example_once_in_its_own_reproducible_order(
    tmp_path: Path, base: Path, processes: int
) -> None:
    examples = tokenized_examples(write_dataset(tmp_path / "dataset"), base)

    def steps(seed: int = 0) -> OptimizerSteps:
        order = partial(order_by_group, examples.groups, 2)
        return OptimizerSteps(examples, 7, processes, order, lambda part: [padded_pack(part)], seed)

    def taken(steps: OptimizerSteps, epoch: int) -> list[list[int]]:
        """The answer tokens of each step."""
        steps.set_epoch(epoch)
        shares = [steps[item] for item in range(len(steps))]
        of_step = [shares[first : first + processes] for first in range(0, len(shares), processes)]
        answers = [
            [t for share in step for pack in share["packs"] for t in pack["targets"].tolist()] for step in of_step
        ]
        for step, targets in zip(of_step, answers, strict=True):
            assert {share["answer_tokens"] for share in step} == {len(targets)}
        return answers

    one = steps()
    assert len(one) == 4 * processes  # 24 examples by 7
    everything = Counter(t for example in examples for t in example.ids[example.prompt_length :].tolist())
    first, second = taken(one, 0), taken(one, 1)
    assert Counter(t for step in first for t in step) == Counter(t for step in second for t in step) == everything
    assert first != second and taken(one, 0) == first == taken(steps(), 0) != taken(steps(seed=1), 0)


def test_examples_are_tokenized_once(tmp_path: Path, base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    made = tokenized_examples(dataset, base)
    monkeypatch.setattr(token_cache, "tokenize", lambda *_: pytest.fail("tokenized again"))
    again = tokenized_examples(dataset, base)
    assert [item.ids.tolist() for item in again] == [item.ids.tolist() for item in made]
    assert len(list(cache.iterdir())) == 1
    assert again.file == made.file and not again[0].ids.flags.owndata  # mapped into memory


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, base: Path, kept: int, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    made = tokenized_examples(dataset, base)
    made.file.write_bytes(made.file.read_bytes()[:kept])
    again = tokenized_examples(dataset, base)
    assert len(again) == 24 and f"{made.file}: is damaged and is made again" in capfd.readouterr().err


def test_an_example_with_a_weight_is_there_as_often(tmp_path: Path, base: Path) -> None:
    items = [example(1, "Oslo"), replace(example(2, "São Paulo"), weight=3), example(3, "上海")]
    (tmp_path / "dataset").mkdir()
    write_examples(tmp_path / "dataset" / "train.jsonl", items)
    made = tokenized_examples(tmp_path / "dataset", base)
    each = [item.ids.tolist() for item in tokenize(items, load_tokenizer(base), DEEPSEEK3)]
    assert [item.ids.tolist() for item in made] == [each[0], each[1], each[1], each[1], each[2]]
    assert made.lengths.tolist() == [len(item.ids) for item in made] and len(made.groups) == 5
    with pytest.raises(InputError, match=f"example q2: {len(each[1])} tokens are more"):
        tokenized_examples(tmp_path / "dataset", base, len(each[1]) - 1)


def test_cached_tokens_equal_those_of_tokenize(tmp_path: Path, base: Path) -> None:
    items = [example(1, "Oslo"), example(2, "São Paulo"), example(3, "上海")]
    (tmp_path / "dataset").mkdir()
    write_examples(tmp_path / "dataset" / "train.jsonl", items)
    expected = tokenize(items, load_tokenizer(base), DEEPSEEK3)
    made = tokenized_examples(tmp_path / "dataset", base)
    assert [(item.ids.tolist(), item.prompt_length) for item in made] == [
        (item.ids.tolist(), item.prompt_length) for item in expected
    ]
    assert made.lengths.tolist() == [len(item.ids) for item in made]


@pytest.mark.parametrize("changed", ["dataset", "tokenizer", "prompt"])
def test_examples_are_tokenized_again_when_an_input_changes(
    tmp_path: Path, base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    tokenized_examples(dataset, base)
    if changed == "dataset":
        write_dataset(dataset, copies=2)
    elif changed == "tokenizer":
        config = base / "tokenizer_config.json"
        config.write_text(config.read_text("utf-8").replace("4096", "2048"), "utf-8")
    else:
        monkeypatch.setattr(token_cache, "PROBE", token_cache.PROBE + "\n")
    tokenized_examples(dataset, base)
    assert len(list(cache.iterdir())) == 2


def test_an_example_over_the_cutoff_is_refused_and_one_at_the_cutoff_is_not(tmp_path: Path, base: Path) -> None:
    (tmp_path / "dataset").mkdir()
    write_examples(tmp_path / "dataset" / "train.jsonl", [example(1, "Oslo"), example(2, "São Paulo")])
    long = int(tokenized_examples(tmp_path / "dataset", base).lengths[1])
    assert len(tokenized_examples(tmp_path / "dataset", base, long)) == 2
    with pytest.raises(InputError, match=f"example q2: {long} tokens are more than cutoff_length {long - 1}"):
        tokenized_examples(tmp_path / "dataset", base, long - 1)


def test_a_dataset_without_examples_is_refused(tmp_path: Path, base: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(InputError, match="contains no examples"):
        tokenized_examples(tmp_path, base)
