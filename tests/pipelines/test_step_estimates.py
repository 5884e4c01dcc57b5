"""Estimates of the steps other than train: cores, memory, disk and hours."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from kubernetes.utils.quantity import parse_quantity

from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.pipelines.pools import Pool, load_pools, step_pools
from chatmetrics.pipelines.recipe import load_recipe
from chatmetrics.pipelines.resources import requests_of
from chatmetrics.pipelines.step_estimates import Questions, StepEstimate, step_estimates
from tests.command import finished_process
from tests.train.memory_of_a_step import CONFIG_7B

SIZES = Sizes.of(CONFIG_7B)
GB = 1e9


def estimates(*overrides: str, questions: Questions | None = None, **pools: Pool) -> dict[str, StepEstimate]:
    recipe = load_recipe("spider-7b", ["cluster.base_parameters=7.6", *overrides])
    return step_estimates(recipe, SIZES, step_pools(recipe, {**load_pools(), **pools}), questions)


def hours(*overrides: str, **arguments: Any) -> float:
    return estimates(*overrides, **arguments)["evaluate"].hours


def test_evaluating_counts_prompts_answers_and_systems() -> None:
    alone = hours("evaluate.score_base=false")
    assert hours() > 2 * alone  # the base may think until max_tokens
    assert hours("evaluate.max_tokens=2048") > 4 * hours()
    assert alone < hours("evaluate.score_base=false", "evaluate.sampled_answers=8") < 9 * alone
    assert hours("preprocess.schema=m-schema") > hours("preprocess.schema=ddl") > hours("preprocess.schema=none")
    assert hours("cluster.requests={evaluate: {cpu: 16}}") == pytest.approx(hours() / 2, rel=0.02)


@pytest.mark.parametrize("chosen", ["evaluate.limit=103", "evaluate.sample=all:103"])
def test_a_sample_of_the_questions_takes_less(chosen: str) -> None:
    fixed = hours("evaluate.limit=1")
    assert hours(chosen) - fixed == pytest.approx((hours() - fixed) / 10, rel=0.03)


def test_a_datasets_own_questions_are_counted() -> None:
    few, many = (hours(questions=Questions(number, 400.0, 40.0)) for number in (100, 1000))
    assert few < many < 10.1 * few
    assert hours(questions=Questions(100, 2000.0, 40.0)) > few


def test_the_questions_between_two_rounds_are_estimated() -> None:
    teacher = ("distill.base_url=http://teacher/v1", "distill.model=r1", "distill.rounds=2")
    assert "evaluate round" not in estimates(*teacher[:2])
    some = estimates(*teacher)["evaluate round"].hours
    assert estimates(*teacher, "distill.round_questions=0")["evaluate round"].hours == pytest.approx(
        3.5 * some, rel=0.05
    )
    assert estimates(*teacher, "distill.sampled_answers=8")["evaluate round"].hours > some


def test_a_gpu_is_faster_than_cores() -> None:
    pool = load_pools()["4090"].model_copy(update={"evaluate_image": "registry/llama-cuda"})
    assert hours("cluster.pools={evaluate: own}", own=pool) < hours() / 5


def test_disk_holds_what_a_step_fetches_and_writes() -> None:
    found = estimates()
    assert found["merge"].disk > 2 * 2 * SIZES.parameters
    assert found["convert"].disk > 2 * 2 * SIZES.parameters + 0.6 * SIZES.parameters
    assert found["train"].disk > 2 * SIZES.parameters
    assert all(it.memory > 0 and it.cores > 0 for it in found.values())


def test_cores_and_memory_grow_with_the_gpus_of_a_pod() -> None:
    one, eight = (requests_of(load_recipe("spider-7b", [f"train.processes={number}"]))["train"] for number in (1, 8))
    assert float(parse_quantity(eight.cpu)) > 4 * float(parse_quantity(one.cpu))
    assert float(parse_quantity(eight.memory)) > 4 * float(parse_quantity(one.memory))


def test_memory_of_distill_grows_with_the_answers() -> None:
    teacher = ("distill.base_url=http://teacher/v1", "distill.model=r1")
    short, long = (
        parse_quantity(requests_of(load_recipe("spider-7b", [*teacher, *more]))["distill"].memory)
        for more in (("distill.max_tokens=512",), ("distill.max_tokens=32768", "distill.samples=16"))
    )
    assert short < long
    assert requests_of(load_recipe("hotel-demo"))["distill"].memory == "2Gi"


def test_the_command_prints_a_line_for_each_step(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_7B))
    base = ("--set", f"base_model={tmp_path}", "--set", "cluster.base_parameters=7.6")
    done = finished_process("estimate", "spider-7b", "--gpu-pool", "A100", *base)
    assert done.returncode == 0, done.stderr
    lines = dict(re.findall(r"^(train|merge|convert|evaluate) +(.*)$", done.stdout, re.MULTILINE))
    assert set(lines) == {"train", "merge", "convert", "evaluate"}
    assert float(lines["evaluate"].split()[-1]) > 1
    slow = finished_process("estimate", "spider-7b", "--gpu-pool", "A100", *base, "--set", "cluster.evaluate_hours=1")
    assert slow.returncode == 0
    assert re.search(r"^warning: evaluate may take \d+\.\d hours, more than cluster.evaluate_hours \(1\)", slow.stderr)
