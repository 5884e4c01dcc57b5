"""The demo on a cluster: the right pool, the gate, deleted pods, cancelling, resuming, schedules, deployment.

Later runs take steps of the first from the cache, so that all are in one file, which one process runs in its order.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import Client

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.nl2sql.acceptance_test import read_acceptance_test
from chatmetrics.components.nl2sql.databases.execution import Executor
from chatmetrics.components.storage.manifest import fetch, read_manifest
from chatmetrics.components.storage.store import Store
from chatmetrics.pipelines.cluster.kubernetes import ready_nodes
from chatmetrics.pipelines.pools import load_pools
from chatmetrics.pipelines.recipe import load_recipe
from tests.e2e.conftest import NAME, SESSION, Done, chatmetrics, deployer_manifests, deployer_token, submit
from tests.e2e.test_serving import OLLAMA, run_in_pod
from tests.waiting import wait_until

STEPS = ("preprocess", "distill", "train", "merge", "convert-student", "convert-base", "evaluate", "gate")
POOL = os.environ.get("E2E_POOL", "A100")  # a pool whose nodes run pods
slow = pytest.mark.slow
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on the PATH")
NAMESPACE = f"e2e-run-{SESSION}"
RELEASE = "hotel"
QUESTION = "2024年上海浦东新区评分前10的酒店订单量"
GOLD = """SELECT hotels.name, count(bookings.id) FROM hotels JOIN districts ON hotels.district_id = districts.id
    JOIN cities ON districts.city_id = cities.id
    LEFT JOIN bookings ON bookings.hotel_id = hotels.id AND bookings.check_in LIKE '2024%'
    WHERE cities.name = '上海' AND districts.name = '浦东新区'
    GROUP BY hotels.id ORDER BY hotels.rating DESC LIMIT 10"""
# What an application in the cluster does: build the prompt with the same code as training, ask the endpoint.
CLIENT = f"""
import os
from chatmetrics.components.inference.client import Client
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
client = Client("http://{RELEASE}.{NAMESPACE}", token=os.environ["TOKEN"], template=DEEPSEEK3)
print(sql_from_answer(client.ask("", instruction("hotel"), "{QUESTION}").text))
"""


def outcome_record(store: Store, run_id: str) -> dict[str, Any]:
    return dict(json.loads(store.read_bytes(f"runs/{run_id}/outcome.json")))


@pytest.fixture(scope="module")
def refused() -> Done:
    """The first run: every step runs, and the student is below the gate."""
    return submit(POOL, "--wait", evaluate__gate=1.0)


@pytest.fixture(scope="module")
def published(refused: Done) -> Done:
    """The second run: unchanged steps are cached, and the student passes the gate."""
    return submit(POOL, "--wait")


def test_a_student_below_the_gate_fails_the_run_and_is_not_published(refused: Done, store: Store) -> None:
    assert refused.status == 4, refused.output + refused.error
    assert "the student is below the gate: accuracy " in refused.error
    record = outcome_record(store, refused.run_id)
    assert (record["state"], record["passed"], record["kind"]) == ("FAILED", False, "GateError")
    assert store.read_bytes(f"runs/{refused.run_id}/report.html").startswith(b"<!doctype html>")
    names = {key.rpartition("/")[2] for key in store.list(f"models/{NAME}/")}
    assert "candidate.json" in names
    assert "manifest.json" not in names


def test_all_steps_ran_as_pods_and_left_their_logs(refused: Done, store: Store) -> None:
    for step in STEPS:
        record = json.loads(store.read_bytes(f"runs/{refused.run_id}/steps/{step}.json"))
        assert record["state"] == ("failed" if step == "gate" else "succeeded"), record
        assert record["node"]
    logs = chatmetrics("logs", refused.run_id, "train")
    assert logs.status == 0
    assert "training: " in logs.output


def test_each_step_ran_in_its_own_image(refused: Done, client: Client) -> None:
    run = client.get_run(refused.run_id)
    version = client.get_pipeline_version(
        run.pipeline_version_reference.pipeline_id, run.pipeline_version_reference.pipeline_version_id
    )
    executors = version.pipeline_spec["pipeline_spec"]["deploymentSpec"]["executors"]
    images = {name: executor["container"]["image"] for name, executor in executors.items()}
    assert len(set(images.values())) >= 6
    assert all(
        step in images[f"exec-{step}"] for step in ("preprocess", "distill", "train", "merge", "convert", "evaluate")
    )


def test_a_good_student_is_published_with_its_scores(published: Done, store: Store) -> None:
    assert published.status == 0, published.output + published.error
    record = outcome_record(store, published.run_id)
    manifest = read_manifest(record["manifest_uri"])
    assert manifest.evaluation is not None
    assert manifest.evaluation["passed"] is True
    assert {"dataset_sha256", "base_fingerprint", "adapter_sha256"} <= set(manifest.provenance)
    assert store.read_bytes(f"runs/{published.run_id}/summary.md").startswith(f"# {NAME}: SUCCEEDED".encode())


def test_unchanged_steps_are_cached(published: Done, store: Store) -> None:
    ran = {key.rpartition("/")[2] for key in store.list(f"runs/{published.run_id}/steps/") if key.endswith(".json")}
    assert ran == {"evaluate.json", "gate.json"}
    assert "cached" in chatmetrics("status", published.run_id).output


@slow
def test_resuming_a_run_whose_train_had_succeeded_does_not_train_again(refused: Done, store: Store) -> None:
    resumed = chatmetrics("resume", refused.run_id, "--wait")
    assert resumed.status == 4, resumed.output + resumed.error  # below the gate, as before
    keys = store.list(f"runs/{resumed.run_id}/steps/")
    assert {key.rpartition("/")[2] for key in keys if key.endswith(".json")} == {"gate.json"}


@slow
def test_train_runs_on_the_requested_pool(
    published: Done, client: Client, cluster: KubernetesClient, train_pod: Callable[[str], Any], tmp_path: Path
) -> None:
    label = load_recipe("hotel-demo").cluster.node_label
    # Every run is cancelled, so the V100's pods do not need its own image.
    (tmp_path / "pools.yaml").write_text("V100: {label: nvidia-v100, gpu_memory_gib: 32}\n")
    pools = load_pools(tmp_path / "pools.yaml")
    pools_with_nodes = [name for name in ("A100", "V100", "4090") if ready_nodes(cluster, pools[name], label)]
    assert POOL in pools_with_nodes
    versions = set()
    for pool in pools_with_nodes:
        started = submit(pool, "--no-cache", "--pools", str(tmp_path / "pools.yaml"))
        assert started.status == 0, started.error
        pod = train_pod(started.run_id)
        assert cluster.core.read_node(pod.spec.node_name).metadata.labels[label] == pools[pool].label
        resources = next(c.resources for c in pod.spec.containers if c.name == "main")
        assert resources.limits["nvidia.com/gpu"] == "1"
        assert pod.spec.node_selector == {label: pools[pool].label}
        versions.add(client.get_run(started.run_id).pipeline_version_reference.pipeline_version_id)
        assert chatmetrics("cancel", started.run_id).status == 0
    assert len(versions) == 1


@slow
def test_a_deleted_train_pod_saves_a_checkpoint_that_training_resumes_from(
    published: Done, cluster: KubernetesClient, store: Store, train_pod: Callable[[str], Any]
) -> None:
    # Far apart, so that the only checkpoint is the one saved at SIGTERM.
    started = submit(POOL, "--no-cache", train__checkpoint_steps=1000)
    pod = train_pod(started.run_id)
    wait_for_training(store, started.run_id)
    cluster.core.delete_namespaced_pod(pod.metadata.name, cluster.namespace)
    wait_for_checkpoint(store, started.run_id)
    followed = chatmetrics("status", started.run_id, "--wait")
    if followed.status:  # Argo's controller has not seen the pod's end, see docs/cluster.md
        followed = chatmetrics("resume", started.run_id, "--wait")
        started = followed
    assert followed.status == 0, followed.output + followed.error
    assert "resuming from" in chatmetrics("logs", started.run_id, "train").output
    # A version is named after its content, so the adapter is the same to the byte.
    assert (
        outcome_record(store, started.run_id)["manifest_uri"] == outcome_record(store, published.run_id)["manifest_uri"]
    )


@slow
def test_a_cancelled_run_is_resumed(published: Done, store: Store, train_pod: Callable[[str], Any]) -> None:
    started = submit(POOL, "--no-cache", train__max_steps=200)
    train_pod(started.run_id)
    wait_for_checkpoint(store, started.run_id)
    assert chatmetrics("resume", started.run_id).status == 3  # it has not ended
    assert chatmetrics("cancel", started.run_id).status == 0
    wait_until_ended(started.run_id)
    resumed = chatmetrics("resume", started.run_id, "--wait")
    assert resumed.status == 0, resumed.output + resumed.error
    assert "resuming from" in chatmetrics("logs", resumed.run_id, "train").output


@slow
def test_the_summary_begins_with_the_reason_of_a_failure(store: Store) -> None:
    failed = submit(POOL, "--wait", preprocess__cutoff_length=16, preprocess__limit=3)
    assert failed.status == 3, failed.output + failed.error
    [line] = [line for line in failed.error.splitlines() if line.startswith("error: ")]
    assert "preprocess.cutoff_length" in line
    summary = store.read_bytes(f"runs/{failed.run_id}/summary.md").decode()
    assert summary.splitlines()[2].startswith("**preprocess: ")


@slow
def test_a_pod_that_waits_too_long_ends_the_run_with_the_scheduler_s_reason() -> None:
    waiting = submit(
        POOL,
        "--wait",
        cluster__requests={"preprocess": {"memory": "900Gi"}},
        cluster__pending_minutes=0.2,
        name="e2e-late",
    )
    assert waiting.status == 5, waiting.output + waiting.error
    assert "Insufficient memory" in waiting.error


def test_a_pool_without_nodes_is_refused_at_once() -> None:
    refused = submit("A100-80G")
    assert refused.status == 3
    assert "no ready node has the label" in refused.error


@slow
def test_a_schedule_is_created_and_listed(client: Client) -> None:
    scheduled = submit(POOL, "--schedule", "0 3 * * 0")
    assert scheduled.status == 0, scheduled.error
    recurring = scheduled.output.split()[1].rstrip(":")
    try:
        assert recurring in chatmetrics("list").output
    finally:
        client.delete_recurring_run(recurring)


def wait_for_training(store: Store, run_id: str) -> None:
    """Wait until the step train has logged progress."""
    log = f"runs/{run_id}/steps/train.log"
    wait_until(
        lambda: store.exists(log) and b"training: " in store.read_bytes(log), 300, "training does not begin", pause=0.5
    )


def wait_for_checkpoint(store: Store, run_id: str) -> None:
    wait_until(
        lambda: any(key.endswith("sealed.json") for key in store.list(f"runs/{run_id}/checkpoints/")),
        300,
        "no checkpoint in the store",
        pause=0.5,
    )


def wait_until_ended(run_id: str) -> None:
    wait_until(
        lambda: any(word in chatmetrics("status", run_id).output for word in ("FAILED", "CANCELED")),
        120,
        "the run does not end",
        pause=2,
    )


@pytest.fixture(scope="module")
def serving(cluster: KubernetesClient, namespace: str) -> Iterator[dict[str, Any]]:
    """Create a namespace to serve in and the deployer's account; yield the recipe's section `deploy` for it."""
    here = KubernetesClient(NAMESPACE)
    here.core.create_namespace({"metadata": {"name": NAMESPACE}})
    keys = {"accesskey": os.environ["AWS_ACCESS_KEY_ID"], "secretkey": os.environ["AWS_SECRET_ACCESS_KEY"]}
    secret = {"metadata": {"name": "mlpipeline-minio-artifact"}, "stringData": keys}
    here.core.create_namespaced_secret(NAMESPACE, secret)
    manifests = deployer_manifests(namespace, NAMESPACE, RELEASE)
    subprocess.run(["kubectl", "apply", "-f", "-"], input=manifests, text=True, check=True)
    token = {"stringData": {"token": deployer_token(cluster.core, namespace)}}
    cluster.core.patch_namespaced_secret("chatmetrics-deployer", namespace, token)
    repository, _, tag = OLLAMA.rpartition(":")
    values = {
        "ollama": {
            "image": {"repository": repository, "tag": tag},
            "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}},
        },
        "storage": {"size": "1Gi"},
    }
    yield {"enabled": True, "release": RELEASE, "namespace": NAMESPACE, "timeout_minutes": 5, "values": values}
    here.core.delete_namespace(NAMESPACE)
    in_runs_namespace = yaml.safe_dump_all(
        entry for entry in yaml.safe_load_all(manifests) if entry["metadata"]["namespace"] == namespace
    )
    subprocess.run(
        ["kubectl", "delete", "--ignore-not-found", "--wait=false", "-f", "-"],
        input=in_runs_namespace,
        text=True,
        check=True,
    )


def deployment_record(done: Done, store: Store) -> dict[str, Any]:
    return dict(json.loads(store.read_bytes(f"runs/{done.run_id}/deployment.json")))


@needs_kubectl
def test_a_run_deploys_its_model(serving: dict[str, Any], store: Store) -> None:
    # The student learns almost nothing, so the threshold of its acceptance test is 0.
    lenient = {**serving, "values": {**serving["values"], "acceptanceTest": {"threshold": 0}}}
    done = submit(POOL, "--wait", deploy=lenient)
    assert done.status == 0, done.output + done.error
    deployed = deployment_record(done, store)
    assert deployed["endpoint"] == f"http://{RELEASE}.{NAMESPACE}.svc:80"
    assert deployed["revision"] == 1
    assert deployed["smoke"]
    endpoint = chatmetrics("endpoint", "--namespace", NAMESPACE, "--release", RELEASE)
    assert endpoint.status == 0, endpoint.error
    assert "deploy" in chatmetrics("status", done.run_id).output
    summary = store.read_bytes(f"runs/{done.run_id}/summary.md").decode()
    assert deployed["endpoint"] in summary


@slow
@needs_kubectl
def test_a_student_below_its_acceptance_test_is_published_and_not_served(serving: dict[str, Any], store: Store) -> None:
    refused = submit(POOL, "--wait", deploy=serving)
    assert refused.status == 4, refused.output + refused.error
    [line] = [line for line in refused.error.splitlines() if line.startswith("error: ")]
    assert "failed its acceptance test" in line and "keeps serving" in line
    outcome = json.loads(store.read_bytes(f"runs/{refused.run_id}/outcome.json"))
    assert outcome["state"] == "FAILED"
    assert outcome["manifest_uri"]


@slow
@needs_kubectl
def test_the_whole_demo_answers_its_question_from_another_pod(
    serving: dict[str, Any], store: Store, tmp_path: Path
) -> None:
    settings = {"name": f"hotel-{SESSION}", "cluster.store": store.uri("").rstrip("/"), "deploy": serving}
    overrides = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    done = chatmetrics("submit", "hotel-demo", "--gpu-pool", POOL, "--wait", *overrides)
    assert done.status == 0, done.output + done.error
    sql = run_in_pod(KubernetesClient(NAMESPACE), CLIENT, NAMESPACE).strip()
    outcome = json.loads(store.read_bytes(f"runs/{done.run_id}/outcome.json"))
    manifest = fetch(outcome["manifest_uri"], tmp_path)
    database = tmp_path / read_acceptance_test(tmp_path / manifest.acceptance_test).databases["hotel"]
    with Executor() as executor:
        expected, answered = executor.execute_all(database, [GOLD, sql])
    assert expected.rows
    assert answered.rows == expected.rows, sql
