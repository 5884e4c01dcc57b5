"""A run that deploys its model: the step deploy as a pod, with the service account of deployer.yaml.

The name sorts it after test_runs.py, whose first run must not find its steps in the cache.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.nl2sql.acceptance_test import read_acceptance_test
from chatmetrics.components.nl2sql.execution import Executor
from chatmetrics.components.storage.manifest import fetch
from chatmetrics.components.storage.store import Store
from tests.e2e.conftest import SESSION, Done, chatmetrics, deployer_manifests, deployer_token, submit
from tests.e2e.test_serving import OLLAMA, run_in_pod

NAMESPACE = f"e2e-run-{SESSION}"
RELEASE = "hotel"
POOL = os.environ.get("E2E_POOL", "A100")
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
from chatmetrics.components.nl2sql.extraction import sql_from_answer
from chatmetrics.components.nl2sql.prompt import instruction
from chatmetrics.components.nl2sql.template import DEEPSEEK3
client = Client("http://{RELEASE}.{NAMESPACE}", token=os.environ["TOKEN"], template=DEEPSEEK3)
print(sql_from_answer(client.ask("", instruction("hotel"), "{QUESTION}").text))
"""
pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on the PATH")


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


@pytest.mark.slow
def test_a_student_below_its_acceptance_test_is_published_and_not_served(serving: dict[str, Any], store: Store) -> None:
    refused = submit(POOL, "--wait", deploy=serving)
    assert refused.status == 4, refused.output + refused.error
    [line] = [line for line in refused.error.splitlines() if line.startswith("error: ")]
    assert "failed its acceptance test" in line and "keeps serving" in line
    outcome = json.loads(store.read_bytes(f"runs/{refused.run_id}/outcome.json"))
    assert outcome["state"] == "FAILED"
    assert outcome["manifest_uri"]


@pytest.mark.slow
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
