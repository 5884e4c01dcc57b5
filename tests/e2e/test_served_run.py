"""A run that ends with its model served: the step deploy as a pod, with the account of deployer.yaml.

It comes after test_runs.py, whose first run must not find its steps in the cache.
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

from chatmetrics.components.nl2sql.acceptance_test import read_acceptance_test
from chatmetrics.components.nl2sql.execution import Executor
from chatmetrics.components.storage.manifest import fetch
from chatmetrics.components.storage.store import Store
from chatmetrics.pipelines.cluster.kubernetes import Cluster
from tests.e2e.conftest import SESSION, Done, chatmetrics, submit
from tests.e2e.test_serving import OLLAMA, run_in_pod

DEPLOYER = Path(__file__).parents[2] / "helm" / "deployer.yaml"
NAMESPACE = f"e2e-run-{SESSION}"
RELEASE = "hotel"
POOL = os.environ.get("E2E_POOL", "A100")
QUESTION = "2024年上海浦东新区评分前10的酒店订单量"
GOLD = """SELECT hotels.name, count(bookings.id) FROM hotels JOIN districts ON hotels.district_id = districts.id
    JOIN cities ON districts.city_id = cities.id
    LEFT JOIN bookings ON bookings.hotel_id = hotels.id AND bookings.check_in LIKE '2024%'
    WHERE cities.name = '上海' AND districts.name = '浦东新区'
    GROUP BY hotels.id ORDER BY hotels.rating DESC LIMIT 10"""
# What an application in the cluster does: the prompt by the code of training, the answer from the endpoint.
CLIENT = f"""
import os
from chatmetrics.components.inference.client import Client
from chatmetrics.components.nl2sql.prompt import instruction, sql_from_answer
client = Client("http://{RELEASE}.{NAMESPACE}", token=os.environ["TOKEN"])
print(sql_from_answer(client.ask("", instruction("hotel"), "{QUESTION}").text))
"""
pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on the PATH")


@pytest.fixture(scope="module")
def serving(cluster: Cluster, namespace: str) -> Iterator[dict[str, Any]]:
    """A namespace to serve in, who may deploy there, and the recipe's section that says so."""
    here = Cluster(NAMESPACE)
    here.core.create_namespace({"metadata": {"name": NAMESPACE}})
    keys = {"accesskey": os.environ["AWS_ACCESS_KEY_ID"], "secretkey": os.environ["AWS_SECRET_ACCESS_KEY"]}
    secret = {"metadata": {"name": "mlpipeline-minio-artifact"}, "stringData": keys}
    here.core.create_namespaced_secret(NAMESPACE, secret)
    names = DEPLOYER.read_text("utf-8").replace("namespace: chatmetrics\n", f"namespace: {NAMESPACE}\n")
    names = names.replace("namespace: kubeflow\n", f"namespace: {namespace}\n")
    subprocess.run(["kubectl", "apply", "-f", "-"], input=names, text=True, check=True)
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
    mine = yaml.safe_dump_all(
        entry for entry in yaml.safe_load_all(names) if entry["metadata"]["namespace"] == namespace
    )
    subprocess.run(
        ["kubectl", "delete", "--ignore-not-found", "--wait=false", "-f", "-"], input=mine, text=True, check=True
    )


def deployment_of(done: Done, store: Store) -> dict[str, Any]:
    return dict(json.loads(store.read_bytes(f"runs/{done.run_id}/deployment.json")))


def test_a_run_ends_with_its_model_served(serving: dict[str, Any], store: Store) -> None:
    # It learns next to nothing, so the acceptance test is one that it passes whatever it says.
    lenient = {**serving, "values": {**serving["values"], "acceptanceTest": {"threshold": 0}}}
    done = submit(POOL, "--wait", deploy=lenient)
    assert done.status == 0, done.output + done.error
    deployed = deployment_of(done, store)
    assert deployed["endpoint"] == f"http://{RELEASE}.{NAMESPACE}.svc:80"
    assert deployed["revision"] == 1
    assert deployed["smoke"]
    said = chatmetrics("endpoint", "--namespace", NAMESPACE, "--release", RELEASE)
    assert said.status == 0, said.error
    assert "deploy" in chatmetrics("status", done.run_id).output
    summary = store.read_bytes(f"runs/{done.run_id}/summary.md").decode()
    assert deployed["endpoint"] in summary


def test_a_student_below_its_acceptance_test_is_published_and_not_served(serving: dict[str, Any], store: Store) -> None:
    refused = submit(POOL, "--wait", deploy=serving)
    assert refused.status == 4, refused.output + refused.error
    [line] = [line for line in refused.error.splitlines() if line.startswith("error: ")]
    assert "failed its acceptance test" in line and "goes on serving" in line
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
    sql = run_in_pod(Cluster(NAMESPACE), CLIENT, NAMESPACE).strip()
    outcome = json.loads(store.read_bytes(f"runs/{done.run_id}/outcome.json"))
    manifest = fetch(outcome["manifest_uri"], tmp_path)
    database = tmp_path / read_acceptance_test(tmp_path / manifest.acceptance_test).databases["hotel"]
    with Executor() as executor:
        expected, answered = executor.execute_all(database, [GOLD, sql])
    assert expected.rows
    assert answered.rows == expected.rows, sql
