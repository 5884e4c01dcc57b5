"""Estimates of training on a GPU pool, and the command that prints them."""

import json
import os
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.train.estimate.memory import Memory, memory_of
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.base_sizes import base_sizes
from chatmetrics.pipelines.estimate import SPIDER_TOKENS, check_fits, estimate
from chatmetrics.pipelines.pools import load_pools
from chatmetrics.pipelines.recipe import Recipe, load_recipe
from tests.command import finished_process
from tests.train.memory_of_a_step import CONFIG_7B

POOLS = load_pools()
GIB = 2**30
SPIDER = os.environ.get("CHATMETRICS_SPIDER_DIR", "")
TOKENIZER = os.environ.get("CHATMETRICS_TOKENIZER_DIR", "")


@pytest.fixture
def published(tmp_path: Path) -> Recipe:
    """The recipe with the published settings, and a base model with the config.json of a 7B."""
    base = tmp_path / "DeepSeek-R1-Distill-Qwen-7B"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(CONFIG_7B))
    return load_recipe("spider-7b", [f"base_model={base}", "cluster.base_parameters=7.6"])


def finished_estimate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return finished_process("estimate", *arguments)


def rows(output: str) -> dict[str, list[str]]:
    """The values of the printed table by label, one per pool."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()]
    return {label: values for label, *values in cells}


def changed(recipe: Recipe, **settings: object) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})


@pytest.mark.parametrize("pool", ["A100", "A100-80G", "V100", "4090"])
def test_the_published_settings_fit_the_pools(published: Recipe, pool: str) -> None:
    check_fits(published, pool, POOLS, base_sizes(published))


def test_larger_batches_or_no_checkpointing_do_not_fit_the_pools(published: Recipe) -> None:
    sizes = base_sizes(published)
    twice = POOLS["V100"].model_copy(update={"batch_size": 2})
    assert estimate(published, twice, sizes).spare < 0
    without = POOLS["4090"].model_copy(update={"gradient_checkpointing": False})
    assert estimate(published, without, sizes).spare < 0
    assert (
        estimate(changed(published, batch_size=4), POOLS["A100"].model_copy(update={"batch_size": 4}), sizes).spare < 0
    )


def test_the_parts_of_memory_have_the_expected_sizes(published: Recipe) -> None:
    memory = estimate(published, POOLS["A100"], base_sizes(published)).memory
    assert memory.weights / GIB == pytest.approx(14.2, abs=0.1)  # 7.6 billion parameters, two bytes each
    # Rank 8 on all linear layers of a 7B is 20.2 million parameters (as PEFT counts them): in fp32, with gradients in
    # fp32 and copies in half precision.
    assert memory.adapter == (4 + 4 + 2) * 20_185_088
    assert memory.optimizer == 2 * 4 * 20_185_088
    assert memory.total == sum(size for _, size in memory.parts()) - min(memory.logits, memory.layer)


def test_a_run_that_does_not_fit_is_refused_with_a_change_that_fits(published: Recipe) -> None:
    recipe = changed(published, cutoff_length=8192)
    with pytest.raises(InputError) as caught:
        check_fits(recipe, "A100", POOLS, base_sizes(recipe))
    text = str(caught.value)
    assert "training takes" in text and "activations" in text and "a GPU of the pool A100 has 40.0" in text
    assert "--set train.gradient_checkpointing=true makes it" in text
    helped = changed(recipe, gradient_checkpointing=True)
    check_fits(helped, "A100", POOLS, base_sizes(helped))


def test_a_run_that_fits_no_pool_is_refused(published: Recipe) -> None:
    recipe = changed(published, cutoff_length=1_000_000)
    with pytest.raises(InputError, match="choose a smaller base model"):
        check_fits(recipe, "4090", POOLS, base_sizes(recipe))


def test_a_pool_without_gpus_is_limited_by_the_pods_memory(published: Recipe) -> None:
    with pytest.raises(InputError, match="the train pod on the pool CPU has"):
        check_fits(published, "CPU", POOLS, base_sizes(published))
    demo = load_recipe("hotel-demo")
    check_fits(demo, "CPU", POOLS, base_sizes(demo))


def test_more_gpus_cost_more_because_each_computes_its_schemas(published: Recipe) -> None:
    sizes = base_sizes(published)
    recipe = published.model_copy(update={"preprocess": published.preprocess.model_copy(update={"schema_form": "ddl"})})
    one, two, eight = (
        estimate(changed(recipe, processes=processes, gradient_accumulation=8 // processes), POOLS["A100"], sizes)
        for processes in (1, 2, 8)
    )
    assert one.steps == two.steps == eight.steps
    assert one.waiting == 0
    # Sixteen examples of two schemas: two GPUs compute one schema each, eight compute a schema for two examples each.
    assert one.hours / two.hours == pytest.approx(2, rel=0.05)
    assert 2 < one.hours / eight.hours < 4
    assert eight.cost > 2 * one.cost and two.cost == pytest.approx(one.cost, rel=0.05)


def test_a_base_in_4_bits_takes_longer(published: Recipe) -> None:
    sizes = base_sizes(published)
    plain, nf4 = (estimate(changed(published, quantize_base=it), POOLS["4090"], sizes) for it in ("none", "nf4"))
    assert nf4.memory.weights < plain.memory.weights / 2
    # A pack of few tokens leaves little to compute for each weight that is dequantized.
    assert 1.02 * plain.hours < nf4.hours < 3 * plain.hours


@pytest.mark.parametrize(("heads", "repeated"), [(28, True), (32, False), (16, False), (40, True), (14, True)])
def test_keys_are_repeated_for_heads_that_are_no_power_of_two(heads: int, repeated: bool) -> None:
    sizes = Sizes(28, 3584, 18944, heads, 2, 128, 152064, False)
    settings = TrainSettings(precision="bf16")
    flex, sdpa = (memory_of(sizes, settings, dense=dense) for dense in (False, True))
    assert (flex.activations == sdpa.activations) is repeated


def test_the_command_shows_all_pools_side_by_side(published: Recipe) -> None:
    done = finished_estimate(
        "spider-7b", "--set", f"base_model={published.base_model}", "--set", "cluster.base_parameters=7.6"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == list(POOLS)
    lines = rows(done.stdout)
    assert lines["precision"] == ["bf16", "bf16", "fp16", "bf16", "fp32"]
    parts = {field.name: float(lines[f"{field.name}, GiB"][0]) for field in fields(Memory)}
    lasting = sum(parts.values()) - min(parts["logits"], parts["layer"])
    assert float(lines["total, GiB"][0]) == pytest.approx(lasting, abs=0.05)
    assert "No --dataset" in done.stdout and "unknown" in lines["hours"]


def test_the_command_refuses_a_pool_that_is_too_small(published: Recipe) -> None:
    base = ("--set", f"base_model={published.base_model}", "--set", "cluster.base_parameters=7.6")
    done = finished_estimate("spider-7b", "--gpu-pool", "V100", *base, "--set", "train.cutoff_length=8192")
    assert done.returncode == 3
    assert "exceeded by" in done.stdout and done.stderr.startswith("error: spider-7b: training takes")


def test_without_a_config_the_sizes_of_a_similar_base_model_are_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    sizes = base_sizes(load_recipe("spider-7b", ["base_model=somebody/qwen-7b-of-ours"]))
    assert sizes.parameters == pytest.approx(7.6e9, rel=0.01)
    assert "using the sizes of a Qwen2.5 with as many parameters" in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.skipif(not (SPIDER and TOKENIZER), reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_TOKENIZER_DIR is not set")
def test_the_tokens_of_a_dataset_are_counted(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    settings = {"format": "spider", "source": SPIDER, "schema": "ddl", "tokenizer": TOKENIZER, "cutoff_length": 2048}
    preprocess(PreprocessSettings.model_validate(settings), dataset)
    given = ("--dataset", dataset, "--set", f"preprocess.tokenizer={TOKENIZER}")
    done = finished_estimate("spider-7b", "--gpu-pool", "A100", *given)
    assert done.returncode == 0, done.stderr
    lines = rows(done.stdout)
    assert lines["optimizer steps"] == ["5,420"]  # ten times 8,659 examples by sixteen
    # The estimate without a dataset assumes the same numbers.
    shared, own = SPIDER_TOKENS["ddl"]
    assert float(lines["tokens per example"][0]) == pytest.approx(shared + own, rel=0.02)
    per_schema = TrainSettings().questions_per_schema
    assert float(lines["computed tokens per example"][0]) == pytest.approx(shared / per_schema + own, rel=0.05)


@pytest.mark.exhaustive
@pytest.mark.skipif(not (SPIDER and TOKENIZER), reason="CHATMETRICS_SPIDER_DIR or CHATMETRICS_TOKENIZER_DIR is not set")
def test_the_shares_of_several_processes_are_counted(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    settings = {"format": "spider", "source": SPIDER, "schema": "ddl", "tokenizer": TOKENIZER, "cutoff_length": 2048}
    preprocess(PreprocessSettings.model_validate(settings), dataset)
    given = ("--dataset", dataset, "--set", f"preprocess.tokenizer={TOKENIZER}", "--gpu-pool", "A100")
    hours, waiting = {}, {}
    for processes in (1, 8):
        shares = (f"train.processes={processes}", f"train.gradient_accumulation={8 // processes}")
        done = finished_estimate("spider-7b", *given, *(word for share in shares for word in ("--set", share)))
        assert done.returncode == 0, done.stderr
        lines = rows(done.stdout)
        hours[processes] = float(lines["hours"][0])
        waiting[processes] = lines.get("waiting for the slowest GPU")
    assert 1.5 < hours[1] / hours[8] < 4  # the schemas are computed again, and shares differ in size
    assert waiting[1] is None and 0 < int(waiting[8][0].rstrip("%")) < 60


def test_a_folder_without_a_dataset_is_named(tmp_path: Path) -> None:
    done = finished_estimate("hotel-demo", "--gpu-pool", "CPU", "--dataset", tmp_path)
    assert done.returncode == 3 and "it has no train.jsonl" in done.stderr
