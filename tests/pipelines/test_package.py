import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from chatmetrics.components.deploy.settings import CREDENTIALS
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.image import image, source_hash
from chatmetrics.pipelines.cluster.package import check_built, compile_package
from chatmetrics.pipelines.pools import find_pool, load_pools
from chatmetrics.pipelines.recipe import load_recipe, shipped_recipes

A100 = find_pool("A100", load_pools())
TAUGHT = ("distill.base_url=https://teacher/v1", "distill.model=large", "distill.api_key_variable=KEY")


def compiled(name: str, folder: Path) -> dict[str, Any]:
    compile_package(load_recipe(name, as_written=True), folder / "pipeline.yaml", A100)
    content: dict[str, Any] = next(yaml.safe_load_all((folder / "pipeline.yaml").read_text("utf-8")))
    return content


@pytest.fixture
def package(tmp_path: Path) -> dict[str, Any]:
    return compiled("spider-7b", tmp_path)


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_a_package_is_a_valid_spec_and_the_same_bytes_every_time(name: str, tmp_path: Path) -> None:
    package = compiled(name, tmp_path)
    spec = json_format.ParseDict(package, PipelineSpec())
    assert spec.pipeline_info.name == name
    first = (tmp_path / "pipeline.yaml").read_bytes()
    compiled(name, tmp_path)
    assert (tmp_path / "pipeline.yaml").read_bytes() == first


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_the_package_in_the_repository_is_up_to_date(name: str, tmp_path: Path) -> None:
    compile_package(load_recipe(name, as_written=True), tmp_path / "pipeline.yaml", A100)
    kept = Path(__file__).parents[2] / "pipelines" / "packages" / f"{name}.yaml"
    assert kept.read_bytes() == (tmp_path / "pipeline.yaml").read_bytes(), "run `make packages`"


def test_the_package_has_the_options_for_kubernetes(package: dict[str, Any], tmp_path: Path) -> None:
    train = package["deploymentSpec"]["executors"]["exec-train"]["container"]
    assert "gpus" in train["resources"]["accelerator"]["resourceCount"]
    assert train["resources"]["resourceMemoryRequest"] == train["resources"]["resourceMemoryLimit"] == "28Gi"
    platform = list(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8")))[1]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for step, executor in executors.items():
        assert executor["securityContext"]["runAsNonRoot"] is True, step
        assert {"mountPath": "/tmp", "volumeName": "tmp"} in executor["emptyDirMounts"], step
        assert [entry["secretName"] for entry in executor["secretAsEnv"]] == ["mlpipeline-minio-artifact"], step
    pooled = executors["exec-train"]
    assert pooled["nodeSelector"]["nodeSelectorJson"] == {"componentInputParameter": "pipelinechannel--node_selector"}
    assert pooled["tolerations"] == [{"tolerationJson": {"componentInputParameter": "pipelinechannel--tolerations"}}]
    assert any(mount["mountPath"] == "/dev/shm" for mount in pooled["emptyDirMounts"])


def test_the_pods_get_the_addressing_style_and_the_ca_of_the_store(tmp_path: Path) -> None:
    chosen = ["cluster.s3_addressing=virtual", "cluster.s3_ca_config_map=company-ca"]
    compile_package(load_recipe("spider-7b", chosen, as_written=True), tmp_path / "pipeline.yaml", A100)
    package, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for step, executor in executors.items():
        environment = package["deploymentSpec"]["executors"][step]["container"]["env"]
        variables = {entry["name"]: entry["value"] for entry in environment}
        assert variables["CHATMETRICS_S3_ADDRESSING"] == "virtual", step
        (mount,) = executor["configMapAsVolume"]
        assert mount["configMapName"] == "company-ca"
        assert variables["AWS_CA_BUNDLE"] == f"{mount['mountPath']}/ca.crt"


def test_a_package_without_cache_disables_it_for_every_task(tmp_path: Path) -> None:
    recipe = load_recipe("spider-7b", as_written=True)
    compile_package(recipe, tmp_path / "pipeline.yaml", A100, cache=False)
    package = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8")))
    dags = [package["root"]["dag"], *(part["dag"] for part in package["components"].values() if "dag" in part)]
    tasks = [task for dag in dags for task in dag["tasks"].values()]
    assert len(tasks) == 9
    assert not any(task["cachingOptions"] for task in tasks)


def test_images_that_were_not_built_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = tmp_path / "digests.json"
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(digests))
    with pytest.raises(InputError, match="images build preprocess merge convert evaluate train-cu126 --registry"):
        check_built("train-cu126")
    names = ("preprocess", "merge", "convert", "evaluate", "train")
    digests.write_text(
        json.dumps({name: {"hash": source_hash(name), "reference": f"r/{name}@sha256:1"} for name in names})
    )
    check_built("train")


def test_queue_and_claims_of_the_recipe_are_in_the_package(tmp_path: Path) -> None:
    chosen = ["cluster.queue=team-a", "cluster.data_claim=questions", "cluster.weights_claim=bases"]
    compile_package(load_recipe("spider-7b", chosen), tmp_path / "pipeline.yaml", A100)
    platform = list(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8")))[1]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for executor in executors.values():
        assert executor["podMetadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    mounted = {step: [mount["mountPath"] for mount in executors[step].get("pvcMount", ())] for step in executors}
    assert mounted["exec-preprocess"] == ["/data", "/weights"]
    assert mounted["exec-evaluate"] == ["/data"]
    assert mounted["exec-train"] == ["/weights"]


def test_only_steps_that_read_the_base_model_get_the_hubs_token(tmp_path: Path) -> None:
    rounds = [*TAUGHT, "distill.rounds=2", "deploy.enabled=true", "cluster.hub_secret=hub"]
    compile_package(load_recipe("spider-7b", rounds, as_written=True), tmp_path / "pipeline.yaml", A100)
    _, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    readers = set()
    for executor in executors.values():
        variables = {key["envVar"] for secret in executor["secretAsEnv"] for key in secret["keyToEnv"]}
        if "HF_TOKEN" in variables:
            readers.add(executor["podMetadata"]["labels"]["chatmetrics/step"])
    assert readers == {"preprocess", "distill", "train", "merge", "convert-base"}


def executors_of(folder: Path, *overrides: str, pools: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The containers and the Kubernetes options of spider-7b's executors, by step."""
    recipe = load_recipe("spider-7b", overrides, as_written=True)
    compile_package(recipe, folder / "pipeline.yaml", A100, pools=load_pools(pools))
    package, platform = yaml.safe_load_all((folder / "pipeline.yaml").read_text("utf-8"))
    executors = package["deploymentSpec"]["executors"]
    options = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return (
        {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()},
        {name.removeprefix("exec-"): executor for name, executor in options.items()},
    )


@pytest.mark.parametrize("hours", [0.001, 0.5, 72, 8760])
def test_the_limit_on_retries_is_longer_than_all_attempts(tmp_path: Path, hours: float) -> None:
    # Argo counts this limit from the start of the first attempt, after it there is no other, and one that runs ends.
    limits = [f"cluster.{name}_hours={hours}" for name in ("train", "distill", "evaluate", "step")]
    _, options = executors_of(tmp_path, *limits, "cluster.retries=7", "deploy.enabled=true", *TAUGHT)
    package = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8")))
    retried = {}
    for dag in (part["dag"] for part in package["components"].values() if "dag" in part):
        for name, task in dag["tasks"].items():
            if policy := task.get("retryPolicy"):
                attempts = policy["maxRetryCount"] + 1
                needed = attempts * (int(options[name]["activeDeadlineSeconds"]) + 24 * 3600)
                needed += policy["maxRetryCount"] * float(policy["backoffDuration"].removesuffix("s"))
                assert policy["backoffFactor"] == 1
                assert float(policy["backoffMaxDuration"].removesuffix("s")) > needed
                retried[name] = policy["maxRetryCount"]
    assert retried["train"] == 7
    assert {"preprocess", "distill", "merge", "convert", "convert-2", "evaluate", "gate", "deploy"} <= set(retried)


def test_databases_are_mounted_where_they_are_read(tmp_path: Path) -> None:
    def mounts(*overrides: str) -> set[str]:
        _, options = executors_of(tmp_path, "cluster.data_claim=data", *overrides)
        claims = {
            step: [claim["mountPath"] for claim in executor.get("pvcMount", ())] for step, executor in options.items()
        }
        return {step for step, paths in claims.items() if "/data" in paths}

    assert mounts() == mounts("train.early_stopping=loss") == {"preprocess", "evaluate"}
    assert mounts("train.early_stopping=accuracy") == {"preprocess", "evaluate", "train"}
    assert mounts("train.early_stopping=accuracy", *TAUGHT) == {"preprocess", "evaluate", "train", "distill"}


def test_disk_is_requested_by_the_size_of_the_base(tmp_path: Path) -> None:
    containers, options = executors_of(tmp_path)
    disks = {step: container["resources"].get("accelerator", {}) for step, container in containers.items()}
    requested = {
        step: int(disk["resourceCount"]) / 1e9
        for step, disk in disks.items()
        if disk.get("resourceType") == "ephemeral-storage"
    }
    assert set(requested) == {"merge", "convert", "convert-2", "evaluate"}
    assert 33 < requested["merge"] < 40 and 38 < requested["convert"] < 45 and 30 < requested["evaluate"] < 50
    assert all(
        {"mountPath": "/tmp", "volumeName": "tmp"} in executor["emptyDirMounts"] for executor in options.values()
    )
    larger, _ = executors_of(tmp_path, "cluster.base_parameters=32")
    assert int(larger["merge"]["resources"]["accelerator"]["resourceCount"]) > 140e9
    chosen, _ = executors_of(tmp_path, "cluster.requests={merge: {disk: 1.5Ti}, preprocess: {disk: 60G}}")
    assert chosen["merge"]["resources"]["accelerator"]["resourceCount"] == str(1536 * 2**30)
    assert chosen["preprocess"]["resources"]["accelerator"]["resourceCount"] == "60000000000"


def test_kueue_s_queue_is_not_asked_for_disk_that_it_may_not_cover(tmp_path: Path) -> None:
    containers, _ = executors_of(tmp_path, "cluster.queue=team-a", "cluster.requests={merge: {disk: 50Gi}}")
    assert "accelerator" not in containers["convert"]["resources"]
    assert containers["merge"]["resources"]["accelerator"]["resourceType"] == "ephemeral-storage"


def test_temporary_files_may_be_on_volumes_of_a_storage_class(tmp_path: Path) -> None:
    containers, options = executors_of(tmp_path, "cluster.scratch_class=fast")
    volumes = {step: executor.get("genericEphemeralVolume", []) for step, executor in options.items()}
    with_volume = {step for step, mounted in volumes.items() if mounted}
    assert with_volume == {"train", "merge", "convert", "convert-2", "evaluate"}
    [train] = volumes["train"]
    assert (train["mountPath"], train["storageClassName"], train["size"]) == ("/tmp", "fast", "26Gi")
    for step, executor in options.items():
        at_tmp = [mount for mount in executor.get("emptyDirMounts", ()) if mount["mountPath"] == "/tmp"]
        assert bool(at_tmp) is (step not in with_volume)
    assert "accelerator" not in containers["merge"]["resources"]


def test_another_step_than_train_may_run_on_a_pool(tmp_path: Path) -> None:
    containers, options = executors_of(tmp_path, "cluster.pools={evaluate: 4090, merge: CPU}")
    assert options["evaluate"]["nodeSelector"] == {"labels": {"accelerator": "nvidia-4090"}}
    assert options["evaluate"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    # Without an image for its GPUs, evaluate takes none away from train.
    assert containers["evaluate"]["resources"]["accelerator"]["resourceType"] == "ephemeral-storage"
    assert "/evaluate" in containers["evaluate"]["image"]
    assert not {"nodeSelector", "tolerations"} & set(options["merge"])
    assert not {"nodeSelector", "tolerations"} & set(options["convert"])
    own = tmp_path / "pools.yaml"
    own.write_text("T4: {label: t4, gpu_memory_gib: 16, evaluate_image: 'r/evaluate-cuda:1', precision: fp16}\n")
    containers, options = executors_of(tmp_path, "cluster.pools={evaluate: T4}", pools=own)
    assert containers["evaluate"]["image"] == "r/evaluate-cuda:1"
    accelerator = containers["evaluate"]["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
    assert options["evaluate"]["activeDeadlineSeconds"] == "259200"


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ("{evaluate: 4091}", r"cluster\.pools\.evaluate 4091: no such pool; did you mean 4090\?"),
        ("{evaluat: '4090'}", r"cluster\.pools\.evaluat.*known are preprocess, distill, merge, convert, evaluate"),
        ("{train: A100}", r"cluster\.pools\.train.*its pool is --gpu-pool"),
        ("{evaluate: [A100]}", r"cluster\.pools\.evaluate"),
    ],
)
def test_a_wrong_pool_of_a_step_is_named(pools: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        executors_of(tmp_path, f"cluster.pools={pools}")


def test_only_distill_gets_the_teachers_key(tmp_path: Path) -> None:
    chosen = [
        "distill.base_url=https://teacher/v1",
        "distill.model=large",
        "distill.rounds=2",
        "distill.api_key_variable=KEY",
    ]
    secrets = ["cluster.teacher_secret=teacher", "cluster.signing_secret=signing", "cluster.signing_key=private"]
    recipe = load_recipe("spider-7b", [*chosen, *secrets], as_written=True)
    compile_package(recipe, tmp_path / "pipeline.yaml", A100)
    package, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    given = {
        step: [(key["secretKey"], key["envVar"]) for key in secret["keyToEnv"]]
        for step, executor in executors.items()
        for secret in executor["secretAsEnv"]
        if secret["secretName"] in ("teacher", "signing")
    }
    assert given == {
        "exec-distill": [("key", "KEY")],
        "exec-distill-2": [("key", "KEY")],
        "exec-gate": [("private", "CHATMETRICS_SIGNING_KEY")],
    }
    tasks = package["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    upstream = {name: set(task.get("dependentTasks", ())) for name, task in tasks.items()}
    assert upstream["train"] == {"distill"} and upstream["distill"] == {"preprocess"}
    assert upstream["evaluate"] == {"distill", "train", "convert"}
    assert upstream["distill-2"] == {"preprocess", "evaluate"} and upstream["train-2"] == {"distill-2"}
    names = {task["taskInfo"]["name"] for task in tasks.values()}
    assert {"distill round 1", "distill", "train round 1", "train", "evaluate round 1", "evaluate"} <= names


@pytest.mark.parametrize(
    ("address", "variable"),
    [("postgresql+psycopg://reader@host/{db_id}", "PGPASSWORD"), ("mysql+pymysql://reader@host/{db_id}", "MYSQL_PWD")],
)
def test_only_steps_that_read_databases_get_their_password(address: str, variable: str, tmp_path: Path) -> None:
    chosen = [f"preprocess.databases={address}", "distill.base_url=https://teacher/v1", "distill.model=large"]
    secrets = ["cluster.database_secret=warehouse", "train.early_stopping=accuracy"]
    recipe = load_recipe("spider-7b", [*chosen, *secrets], as_written=True)
    compile_package(recipe, tmp_path / "pipeline.yaml", A100)
    _, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8"))
    given = {
        step.removeprefix("exec-"): [(key["secretKey"], key["envVar"]) for key in secret["keyToEnv"]]
        for step, executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items()
        for secret in executor["secretAsEnv"]
        if secret["secretName"] == "warehouse"
    }
    steps = ("preprocess", "distill", "train", "evaluate")
    assert given == {step: [("password", variable)] for step in steps}


def test_a_package_has_no_path_of_the_machine_that_compiled_it(tmp_path: Path) -> None:
    compiled("hotel-demo", tmp_path)
    assert str(Path(__file__).parents[2]) not in (tmp_path / "pipeline.yaml").read_text("utf-8")


def test_every_step_has_the_image_of_its_source(package: dict[str, Any]) -> None:
    executors = package["deploymentSpec"]["executors"]
    images = {name.removeprefix("exec-"): executor["container"]["image"] for name, executor in executors.items()}
    steps = {"convert-2": "convert", "gate": "evaluate", "outcome": "evaluate"}
    assert set(images) == {"preprocess", "train", "merge", "convert", "evaluate", *steps}
    # Train's image depends on the pool, so it is a parameter.
    assert package["root"]["inputDefinitions"]["parameters"]["train_image"]["defaultValue"] == image("train")
    assert "train_image" in images.pop("train")
    assert images == {name: image(steps.get(name, name)) for name in images}


def test_nothing_is_installed_when_a_step_starts(package: dict[str, Any]) -> None:
    for executor in package["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_the_recipes_values_are_the_defaults(package: dict[str, Any]) -> None:
    parameters = package["root"]["inputDefinitions"]["parameters"]
    assert parameters["base_model"]["defaultValue"] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert parameters["train_settings"]["defaultValue"]["learning_rate"] == 5e-5
    assert parameters["preprocess_settings"]["defaultValue"]["schema"] == "none"
    # Two runs of one package never share a folder.
    assert "{run}" in parameters["checkpoints"]["defaultValue"]


def test_the_order_of_the_steps(package: dict[str, Any]) -> None:
    tasks = package["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    upstream = {name: set(task.get("dependentTasks", ())) for name, task in tasks.items()}
    assert upstream == {
        "preprocess": set(),
        "train": {"preprocess"},
        "merge": {"train"},
        "convert": {"preprocess", "merge"},
        "convert-2": {"preprocess"},
        "evaluate": {"preprocess", "train", "convert", "convert-2"},
        "gate": {"evaluate", "convert"},
    }
    assert package["root"]["dag"]["tasks"]["outcome"]["dependentTasks"] == ["exit-handler-1"]


@pytest.fixture
def deploying(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Package of a recipe that deploys: the pipeline spec, and the Kubernetes options of each executor."""
    recipe = load_recipe("spider-7b", ["deploy.enabled=true", "deploy.secret=the-deployer"], as_written=True)
    compile_package(recipe, tmp_path / "pipeline.yaml", A100)
    spec, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text("utf-8"))
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_a_recipe_that_deploys_ends_with_a_deploy_task_without_cache(
    deploying: tuple[dict[str, Any], dict[str, Any]], package: dict[str, Any]
) -> None:
    tasks = deploying[0]["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert tasks["deploy"]["dependentTasks"] == ["gate"]
    assert tasks["deploy"]["cachingOptions"] == {}
    assert tasks["deploy"]["retryPolicy"]["maxRetryCount"] == 1
    for name in ("manifest_uri", "manifest_sha256"):
        given = tasks["deploy"]["inputs"]["parameters"][name]["taskOutputParameter"]
        assert given == {"outputParameterKey": name, "producerTask": "gate"}
    executor = deploying[0]["deploymentSpec"]["executors"]["exec-deploy"]["container"]
    assert executor["image"] == image("deploy")
    settings = deploying[0]["root"]["inputDefinitions"]["parameters"]["deploy_settings"]["defaultValue"]
    assert settings["values"]["image"]["repository"].endswith("/serve")
    # Another recipe has no such task and uses no such secret.
    assert "deploy" not in package["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert package["root"]["inputDefinitions"]["parameters"]["deploy_settings"]["defaultValue"] == {}


def test_only_the_deploy_pod_has_the_deployers_token(deploying: tuple[dict[str, Any], dict[str, Any]]) -> None:
    mounted = {step: executor.get("secretAsVolume", []) for step, executor in deploying[1].items()}
    [secret] = mounted.pop("exec-deploy")
    assert (secret["secretName"], secret["mountPath"]) == ("the-deployer", str(CREDENTIALS))
    assert not secret.get("optional")
    assert not any(mounted.values())


def test_a_recipe_that_deploys_needs_two_more_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = tmp_path / "digests.json"
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(digests))
    names = ("preprocess", "merge", "convert", "evaluate", "train")
    digests.write_text(json.dumps({name: {"hash": source_hash(name), "reference": f"r/{name}:1"} for name in names}))
    check_built("train", load_recipe("spider-7b"))
    with pytest.raises(InputError, match="not built from this source: deploy, serve; "):
        check_built("train", load_recipe("spider-7b", ["deploy.enabled=true"]))


def test_an_output_path_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        compile_package(load_recipe("spider-7b"), tmp_path / "file" / "pipeline.yaml", A100)
