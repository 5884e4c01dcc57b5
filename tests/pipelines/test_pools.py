"""GPU pools, and the CPU and memory requests of the steps."""

from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.pools import find_pool, load_pools
from chatmetrics.pipelines.recipe import Recipe, load_recipe
from chatmetrics.pipelines.resources import billions_of_parameters, requests_of


@pytest.fixture
def spider() -> Recipe:
    return load_recipe("spider-7b")


def test_each_pool_selects_its_nodes_and_one_package_serves_all(spider: Recipe) -> None:
    pools = load_pools()
    selectors = {name: pools[name].arguments(spider)["node_selector"] for name in ("A100", "V100", "4090", "CPU")}
    assert selectors == {
        "A100": {"accelerator": "nvidia-a100"},
        "V100": {"accelerator": "nvidia-v100"},
        "4090": {"accelerator": "nvidia-4090"},
        "CPU": {},
    }
    assert "/train-cu126" in pools["V100"].arguments(spider)["train_image"]
    assert (pools["A100"].arguments(spider)["gpus"], pools["CPU"].arguments(spider)["gpus"]) == ("1", "0")


@pytest.mark.parametrize(
    ("pool", "precision", "batch_size", "gradient_accumulation", "gradient_checkpointing"),
    [
        ("A100", "bf16", 2, 8, False),
        ("A100-80G", "bf16", 2, 8, False),
        ("V100", "fp16", 1, 16, False),
        ("4090", "bf16", 1, 16, True),
        ("CPU", "fp32", 2, 8, False),
    ],
)
def test_a_recipe_is_adapted_to_its_pool(
    spider: Recipe,
    pool: str,
    precision: str,
    batch_size: int,
    gradient_accumulation: int,
    gradient_checkpointing: bool,
) -> None:
    settings = load_pools()[pool].arguments(spider)["train_settings"]
    assert settings["precision"] == precision
    assert (settings["batch_size"], settings["gradient_accumulation"]) == (batch_size, gradient_accumulation)
    assert settings["gradient_checkpointing"] is gradient_checkpointing
    recipe = spider.train.model_dump(mode="json")
    untouched = recipe.keys() - {"precision", "batch_size", "gradient_accumulation", "gradient_checkpointing"}
    assert {name: settings[name] for name in untouched} == {name: recipe[name] for name in untouched}


@pytest.mark.parametrize(("batch_size", "gradient_accumulation"), [(1, 5), (3, 5), (8, 1), (6, 4), (7, 1)])
def test_a_pool_keeps_the_number_of_examples_per_optimizer_step(batch_size: int, gradient_accumulation: int) -> None:
    recipe = TrainSettings(batch_size=batch_size, gradient_accumulation=gradient_accumulation)
    for pool in load_pools().values():
        fitted = pool.fitted(recipe)
        assert fitted.batch_size * fitted.gradient_accumulation == batch_size * gradient_accumulation
        assert fitted.batch_size <= min(batch_size, pool.batch_size or batch_size)


def test_a_recipe_in_full_precision_keeps_it() -> None:
    assert {pool.fitted(TrainSettings(precision="fp32")).precision for pool in load_pools().values()} == {"fp32"}


def test_the_key_of_the_node_label_is_a_setting() -> None:
    recipe = load_recipe("spider-7b", ["cluster.node_label=cloud.google.com/gke-accelerator"])
    selector = load_pools()["A100"].arguments(recipe)["node_selector"]
    assert selector == {"cloud.google.com/gke-accelerator": "nvidia-a100"}


def test_a_users_pools_are_added_to_the_shipped_ones(tmp_path: Path) -> None:
    file = tmp_path / "pools.yaml"
    file.write_text("H100: {label: h100, gpu_memory_gib: 80}\nMI300X: {gpu_memory_gib: 192, resource: amd.com/gpu}\n")
    pools = load_pools(file)
    assert {"A100", "H100", "MI300X"} <= set(pools)
    assert pools["MI300X"].resource == "amd.com/gpu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H100: {gpu_memory: 80}\n", r"H100\.gpu_memory: unknown key; did you mean gpu_memory_gib\?"),
        ("H100: {gpu_memory_gib: 80, price: 3}\n", r"H100\.price: unknown key; did you mean price_per_hour\?"),
        ("- H100\n", "must be a mapping"),
        ("H100: 80\n", "H100: input should be a valid dictionary"),
        ("T4: {gpu_memory_gib: 15, compute_capability: 7.5}\n", "T4.*does not support bf16; set precision: fp16"),
    ],
)
def test_a_mistake_in_pools_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_pools(tmp_path / "pools.yaml")


def test_a_misspelled_pool_is_answered_with_the_closest() -> None:
    with pytest.raises(InputError, match="did you mean A100"):
        find_pool("a10", load_pools())


@pytest.mark.parametrize(
    ("name", "billions"),
    [("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7), ("Qwen/Qwen2.5-1.5B-Instruct", 1.5), ("x/llama-3-8b", 8)],
)
def test_the_size_of_a_base_model_is_read_from_its_name(name: str, billions: float) -> None:
    assert billions_of_parameters(load_recipe("spider-7b", [f"base_model={name}"])) == billions


def test_a_name_without_a_size_needs_the_setting() -> None:
    with pytest.raises(InputError, match=r"cluster\.base_parameters"):
        billions_of_parameters(load_recipe("spider-7b", ["base_model=team/our-model"]))


def test_memory_grows_with_the_base_and_can_be_set(spider: Recipe) -> None:
    assert requests_of(spider)["merge"].memory == "55Gi"
    assert requests_of(load_recipe("hotel-demo"))["merge"].memory == "2Gi"
    chosen = load_recipe("spider-7b", ["cluster.requests={merge: {memory: 80Gi}}"])
    assert requests_of(chosen)["merge"].memory == "80Gi"
    assert requests_of(chosen)["merge"].cpu == requests_of(spider)["merge"].cpu
    with pytest.raises(InputError, match=r"cluster\.requests\.marge: no such step; did you mean merge\?"):
        requests_of(load_recipe("spider-7b", ["cluster.requests={marge: {memory: 80Gi}}"]))
    with pytest.raises(InputError, match=r"cluster\.requests\.merge\.mem: unknown key; did you mean memory\?"):
        requests_of(load_recipe("spider-7b", ["cluster.requests.merge.mem=80Gi"]))
