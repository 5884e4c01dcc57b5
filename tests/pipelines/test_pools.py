"""GPU pools, and the CPU and memory requests of the steps."""

import re
from pathlib import Path

import pytest
import yaml
from kubernetes.client import V1Toleration
from kubernetes.utils.quantity import parse_quantity

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.cluster.package import compile_package
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
        load_recipe("spider-7b", ["cluster.requests.merge.mem=80Gi"])


@pytest.mark.parametrize(
    ("written", "memory"),
    [
        ("64Gi", "64Gi"),
        ("1.5Gi", "1536Mi"),
        (".5Gi", "512Mi"),
        ("5.Gi", "5Gi"),
        ("2.5G", "2500000000"),
        ("64G", "64G"),
        ("6.4e10", "62500000Ki"),
        ("64e9", "62500000Ki"),
        ("68719476736", "68719476736"),
        ("4000000K", "3906250Ki"),
        ("4000000k", "3906250Ki"),
        ("2Ti", "2Ti"),
        ("1.0005Gi", "1074278695"),  # rounded up to whole bytes
        ("3000000000000m", "3000000000"),
        ("' 64Gi'", "64Gi"),
    ],
)
def test_memory_is_converted_to_what_kfp_and_kubernetes_take(written: str, memory: str, tmp_path: Path) -> None:
    recipe = load_recipe("spider-7b", [f"cluster.requests={{train: {{memory: {written}}}}}"])
    assert parse_quantity(requests_of(recipe)["train"].memory) == parse_quantity(memory)
    compile_package(recipe, tmp_path / "package.yaml", load_pools()["A100"])
    package = next(yaml.safe_load_all((tmp_path / "package.yaml").read_text()))
    resources = package["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == requests_of(recipe)["train"].memory
    assert re.fullmatch(r"[0-9]+([MGTPE]|[KMGTPE]i)?", resources["resourceMemoryRequest"])  # a subset of both grammars


@pytest.mark.parametrize(
    ("written", "cpu"), [("8", "8"), ("0.5", "500m"), ("500m", "500m"), ("1e1", "10"), (".25", "250m"), ("'2.0'", "2")]
)
def test_cpu_is_converted_to_what_kfp_and_kubernetes_take(written: str, cpu: str) -> None:
    recipe = load_recipe("spider-7b", [f"cluster.requests={{train: {{cpu: {written}}}}}"])
    assert requests_of(recipe)["train"].cpu == cpu


@pytest.mark.parametrize(
    ("resource", "written"),
    [
        *(("memory", text) for text in ("64", "0.5", "500m", "100K", "1e3", "0", "-1Gi", "64gi", "64GB", "64 Gi")),
        *(
            ("memory", text)
            for text in ("'64 GB'", "lots", "nan", ".inf", "true", "1_000Mi", "100E", "[]", "{}", "٣Gi")
        ),
        *(("cpu", text) for text in ("0", "-1", "0.0001", "5n", "two", "true", "1.5Gi", "8 cores", ".nan")),
    ],
)
def test_an_amount_that_no_step_can_use_is_refused_with_its_key(resource: str, written: str) -> None:
    with pytest.raises(InputError, match=rf"^--set cluster\.requests\.train\.{resource}: should be ") as caught:
        load_recipe("spider-7b", [f"cluster.requests={{train: {{{resource}: {written}}}}}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("resource", ["cpu", "memory", "disk"])
def test_an_empty_amount_leaves_the_estimate(resource: str) -> None:
    estimated = requests_of(load_recipe("spider-7b"))["train"]
    recipe = load_recipe("spider-7b", [f"cluster.requests={{train: {{{resource}: ''}}}}"])
    assert requests_of(recipe)["train"] == estimated


@pytest.mark.parametrize(
    "setting",
    [
        *("s3_access_key=..", "s3_secret_key=.", "teacher_key=..key", "s3_endpoint=minio:9000"),
        *("s3_endpoint=s3://b", "s3_endpoint=http://user:secret@minio:9000", "s3_endpoint=http://minio:9000/bucket"),
    ],
)
def test_a_value_that_pods_cannot_use_is_refused_with_its_key(setting: str) -> None:
    with pytest.raises(InputError, match=rf"^--set cluster\.{setting.partition('=')[0]}: ") as caught:
        load_recipe("spider-7b", [f"cluster.{setting}"])
    assert "user:secret" not in str(caught.value)


TAINTED = "H100: {{gpu_memory_gib: 80, tolerations: [{}]}}\n"


@pytest.mark.parametrize(
    ("toleration", "message"),
    [
        ("{key: gpu, value: true}", r"tolerations\.0\.value: should be in quotes"),
        ("{key: gpu, value: yes}", r"tolerations\.0\.value: should be in quotes"),
        ("{key: gpu, value: 1}", r"tolerations\.0\.value: should be in quotes"),
        ("{key: gpu, value: a b}", r"tolerations\.0\.value: should be letters"),
        ("{key: 7, operator: Exists}", r"tolerations\.0\.key: should be in quotes"),
        ("{key: a/b/c, operator: Exists}", r"tolerations\.0\.key: should be letters"),
        ("{key: gpu, operator: exists}", r"tolerations\.0\.operator: input should be 'Exists' or 'Equal'"),
        ("{key: gpu, operator: true}", r"tolerations\.0\.operator"),
        ("{key: gpu, effect: noSchedule}", r"tolerations\.0\.effect: input should be"),
        ("{key: gpu, effect: NoSchedule, tolerationSeconds: 5}", r"tolerationSeconds needs effect: NoExecute"),
        ("{key: gpu, operator: Exists, value: present}", r"operator: Exists takes no value"),
        ("{operator: Equal, value: present}", r"without a key needs operator: Exists"),
        ("{}", r"without a key needs operator: Exists"),
        ("{key: gpu, operater: Exists}", r"tolerations\.0\.operater: unknown key; did you mean operator\?"),
        ("gpu", r"tolerations\.0: input should be a valid dictionary"),
    ],
)
def test_a_toleration_that_kubernetes_refuses_is_named(toleration: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text(TAINTED.format(toleration))
    with pytest.raises(InputError, match=rf"pools\.yaml: H100\..*{message}"):
        load_pools(tmp_path / "pools.yaml")


@pytest.mark.parametrize(
    ("toleration", "written"),
    [
        ("{key: gpu, value: 'true'}", {"key": "gpu", "value": "true"}),
        ("{operator: Exists}", {"operator": "Exists"}),
        (
            "{key: example.com/gpu, operator: Exists, effect: NoExecute, tolerationSeconds: 60}",
            {"key": "example.com/gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
        ),
    ],
)
def test_a_toleration_reaches_the_pod_as_it_is_written(
    toleration: str, written: dict[str, object], spider: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "pools.yaml").write_text(TAINTED.format(toleration))
    pool = load_pools(tmp_path / "pools.yaml")["H100"]
    assert pool.arguments(spider)["tolerations"] == [written]
    V1Toleration(**{{"tolerationSeconds": "toleration_seconds"}.get(key, key): value for key, value in written.items()})


@pytest.mark.parametrize(
    "text",
    [
        "H100: {gpu_memory_gib: 80, label: 4090}\n",
        "H100: {gpu_memory_gib: 80, label: true}\n",
        "H100: {gpu_memory_gib: 80, label: 'H 100'}\n",
        f"H100: {{gpu_memory_gib: 80, label: {'x' * 64}}}\n",
        "H100: {gpu_memory_gib: 80, resource: nvidia.com/gpu:1}\n",
        "H100: {gpu_memory_gib: 80, resource: ''}\n",
        "H100: {gpu_memory_gib: .inf}\n",
        "H100: {gpu_memory_gib: 80, price_per_hour: .nan}\n",
    ],
)
def test_a_pool_that_kubernetes_cannot_select_is_refused_with_its_key(text: str, tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text(text)
    with pytest.raises(InputError, match=r"H100\.(label|resource|gpu_memory_gib|price_per_hour): "):
        load_pools(tmp_path / "pools.yaml")


@pytest.mark.parametrize(
    "setting",
    [
        *("queue=Team A", f"queue={'q' * 64}", "data_claim=my_claim", "weights_claim=/weights", "s3_secret=Keys"),
        *("hub_secret=hub token", "teacher_secret=-x", "image_pull_secret=a..b", "service_account=5.", "queue=true"),
        *("s3_access_key=access key", "s3_secret_key=a/b", "teacher_key='a b'", "node_label=a/b/c", "node_label=''"),
        *("node_label=Example_.com/x", "data_claim=3", "train_hours=.inf", "step_hours=1e9", "distill_hours=.nan"),
        *("base_parameters=.inf", "retries=1000000"),
    ],
)
def test_a_name_that_kubernetes_refuses_is_refused_with_its_key(setting: str) -> None:
    with pytest.raises(InputError, match=rf"^--set cluster\.{setting.partition('=')[0]}: "):
        load_recipe("spider-7b", [f"cluster.{setting}"])


@pytest.mark.parametrize(
    "setting", ["queue=team-a", "data_claim=data.v2", "node_label=cloud.google.com/gke-accelerator"]
)
def test_a_name_of_kubernetes_is_taken(setting: str) -> None:
    key, _, value = setting.partition("=")
    assert getattr(load_recipe("spider-7b", [f"cluster.{setting}"]).cluster, key) == value
