"""The chart in a cluster, with a real Ollama: rollouts lose no request, and bad models never answer."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import psycopg
import pytest
import yaml
from kubernetes import client as kubernetes
from kubernetes.client import ApiException

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.image import image
from chatmetrics.components.storage.manifest import read_manifest
from chatmetrics.components.storage.store import Store, open_store
from tests.e2e.conftest import SESSION, STORE, Done, chatmetrics
from tests.nl2sql.postgres import BINARIES, postgres
from tests.serve.pods import ANSWER, hotel_database, published
from tests.waiting import wait_until

NAMESPACE = f"e2e-serving-{SESSION}"
RELEASE = "hotel"
OLLAMA = os.environ.get("E2E_OLLAMA_IMAGE", "docker.io/ollama/ollama:0.34.0")
MODELS = f"{STORE}/e2e-serving/{SESSION}"
LOAD = Path(__file__).with_name("load.py").read_text("utf-8")
REQUESTS_PER_SECOND = 12
PASSWORD = "correct horse battery staple"
S3 = urlsplit(os.environ.get("KFP_S3_ENDPOINT_IN_CLUSTER", "http://minio-service.kubeflow:9000"))
slow = pytest.mark.slow


def publish(folder: Path, store: Store, version: str, **options: Any) -> str:
    """Publish the tiny model of `published` in S3, and return its URI."""
    uri = published(folder, version, **options).rpartition("/")[2]
    source = folder / "models" / "hotel" / uri
    for path in source.iterdir():
        store.put_file(path, f"hotel/{version}/{path.name}")
    return f"{MODELS}/hotel/{version}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Return a function that publishes a version unless it exists, and returns its URI."""
    store, folder = open_store(MODELS), tmp_path_factory.mktemp("models")

    def find(version: str, **options: Any) -> str:
        exists = store.exists(f"hotel/{version}/manifest.json")
        return f"{MODELS}/hotel/{version}" if exists else publish(folder, store, version, **options)

    yield find
    for key in store.list(""):
        store.delete(key)


@pytest.fixture(scope="module")
def server(cluster: KubernetesClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int] | None]:
    """The address and port, as pods reach them, of a PostgreSQL server on this machine; None if it is not installed.

    Its database `sales` has other hotels than the file, and its account `reader` may only read, with a password.
    """
    if BINARIES is None:
        yield None
        return
    nodes = cluster.core.list_node().items
    found = (each.address for node in nodes for each in node.status.addresses or () if each.type == "InternalIP")
    address, folder = next(found), tmp_path_factory.mktemp("server")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route, postgres(folder, "reader") as url:
        route.connect((address, 9))  # sends nothing
        with psycopg.connect(f"{url.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE sales")
        with psycopg.connect(f"{url.replace('+psycopg', '')}/sales", autocommit=True) as connection:
            connection.execute("CREATE TABLE hotel (id int PRIMARY KEY, name text, rating numeric(3, 1))")
            connection.execute("INSERT INTO hotel VALUES (1, 'Ritz', 4.8), (2, '和平饭店', NULL)")
            connection.execute(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
            connection.execute("GRANT SELECT ON hotel TO reader")
        yield route.getsockname()[0], int(url.rpartition(":")[2])


def about_server(address: str, port: int) -> dict[str, Any]:
    """The values with which pods answer from the server: its name, its password, and the way to it."""
    named = {"name": "sales", "address": f"postgresql+psycopg://reader@{address}:{port}/sales"}
    way = {"to": [{"ipBlock": {"cidr": f"{address}/32"}}], "ports": [{"port": port, "protocol": "TCP"}]}
    return {"database": named, "passwordSecret": "database", "egress": [way]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, server: tuple[str, int] | None) -> Path:
    """A recipe with its own release, whose values have the address of the S3 store."""
    repository, _, tag = image("serve").rpartition(":")
    ollama, _, ollama_tag = OLLAMA.rpartition(":")
    resources = {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}
    values: dict[str, Any] = {
        "image": {"repository": repository, "tag": tag},
        "ollama": {"image": {"repository": ollama, "tag": ollama_tag}, "resources": resources},
        # A Service of this namespace, so that a test can make the store unavailable for this release only.
        "s3": {"endpoint": f"http://store:{S3.port}", "existingSecret": "store"},
        # It is an ExternalName, so its pods are in another namespace.
        "networkPolicy": {"s3": [{"namespaceSelector": {}}]},
        "storage": {"size": "1Gi"},
        "rollout": {"minReadySeconds": 1},
        "limits": {"rate": ""},
        "ask": {
            "databases": [
                {"name": "hotel", "path": "/databases/hotel.sqlite"},
                {"name": "archive", "address": "duckdb:////databases/archive.duckdb"},
            ]
        },
        "extraVolumes": [{"name": "databases", "configMap": {"name": "databases"}}],
        "extraVolumeMounts": [{"name": "databases", "mountPath": "/databases"}],
    }
    if server:
        there = about_server(*server)
        values["ask"]["databases"].append(there["database"])
        values["ask"]["passwordSecret"] = there["passwordSecret"]
        values["networkPolicy"]["egress"] = there["egress"]
    if "@" in image("serve"):
        repository, _, digest = image("serve").partition("@")
        values["image"] = {"repository": repository, "digest": digest}
    section = {"release": RELEASE, "namespace": NAMESPACE, "model": "hotel", "timeout_minutes": 3, "values": values}
    path = tmp_path_factory.mktemp("recipe") / "hotel.yaml"
    text = {"name": "hotel", "base_model": "none", "preprocess": {"format": "hotel"}, "deploy": section}
    path.write_text(yaml.safe_dump(text), "utf-8")
    return path


@pytest.fixture(scope="module")
def site(cluster: KubernetesClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesClient]:
    """A namespace with pod security level "restricted", the store's secret and a database."""
    client = KubernetesClient(NAMESPACE)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    client.core.create_namespace({"metadata": {"name": NAMESPACE, "labels": labels}})
    secret = {"accesskey": os.environ["AWS_ACCESS_KEY_ID"], "secretkey": os.environ["AWS_SECRET_ACCESS_KEY"]}
    client.core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": "store"}, "stringData": secret})
    password = {"metadata": {"name": "database"}, "stringData": {"password": PASSWORD}}
    client.core.create_namespaced_secret(NAMESPACE, password)
    database = hotel_database(tmp_path_factory.mktemp("databases") / "hotel.sqlite").read_bytes()
    archive = tmp_path_factory.mktemp("archive") / "archive.duckdb"
    with duckdb.connect(str(archive)) as connection:
        connection.execute("CREATE TABLE hotel (id int PRIMARY KEY, name text, rating double)")
        connection.execute("INSERT INTO hotel VALUES (1, 'Adler', 3.5)")
    files = {"hotel.sqlite": database, "archive.duckdb": archive.read_bytes()}
    content = {name: base64.b64encode(data).decode() for name, data in files.items()}
    client.core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "databases"}, "binaryData": content})
    create_store_service(client)
    yield client
    client.core.delete_namespace(NAMESPACE)


def create_store_service(site: KubernetesClient) -> None:
    """Create the Service `store`, which stands for the S3 store in the namespace."""
    name = S3.hostname if S3.hostname and S3.hostname.count(".") > 1 else f"{S3.hostname}.svc.cluster.local"
    spec = {"type": "ExternalName", "externalName": name}
    site.core.create_namespaced_service(NAMESPACE, {"metadata": {"name": "store"}, "spec": spec})


@pytest.fixture(scope="module")
def served(site: KubernetesClient, recipe: Path, models: Callable[..., str]) -> Done:
    """Deploy the first version."""
    return deploy(models("1"), recipe)


def deploy(uri: str, recipe: Path) -> Done:
    return chatmetrics("deploy", uri, "--recipe", str(recipe))


class Load:
    """A pod that sends requests for some seconds, while a test does something else."""

    def __init__(self, site: KubernetesClient, seconds: float) -> None:
        self._core, self._name = site.core, f"load-{time.monotonic_ns()}"
        token = {"secretKeyRef": {"name": f"{RELEASE}-tokens", "key": "default"}}
        container = {
            "name": "load",
            "image": image("serve"),
            "command": ["python3", "-c", LOAD, f"http://{RELEASE}", str(REQUESTS_PER_SECOND), str(seconds)],
            "env": [{"name": "TOKEN", "valueFrom": token}],
            "volumeMounts": [{"name": "stop", "mountPath": "/tmp"}],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        restricted = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
        spec = {"restartPolicy": "Never", "securityContext": restricted, "containers": [container]}
        spec["volumes"] = [{"name": "stop", "emptyDir": {}}]
        self._core.create_namespaced_pod(NAMESPACE, {"metadata": {"name": self._name}, "spec": spec})
        self._wait(lambda: "started" in self._log())

    def result(self) -> dict[str, Any]:
        """Return the number of answers by version; any other key is a lost request."""
        self._wait(lambda: self._core.read_namespaced_pod(self._name, NAMESPACE).status.phase == "Succeeded")
        counts = dict(json.loads(self._log().splitlines()[-1]))
        self._core.delete_namespaced_pod(self._name, NAMESPACE)
        counts.pop("slowest ms")
        return counts

    def _log(self) -> str:
        try:
            return log_of(self._core, self._name)
        except ApiException:
            return ""

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not ready():
            assert time.monotonic() < deadline, self._log()
            time.sleep(0.5)


def run_in_pod(site: KubernetesClient, script: str, namespace: str = NAMESPACE) -> str:
    """Run a Python script in a pod that has the token, and return its output."""
    name = f"client-{time.monotonic_ns()}"
    container = {
        "name": "client",
        "image": image("serve"),
        "command": ["python3", "-c", script],
        "env": [
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": f"{RELEASE}-tokens", "key": "default"}}},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    restricted = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"restartPolicy": "Never", "securityContext": restricted, "containers": [container]}
    site.core.create_namespaced_pod(namespace, {"metadata": {"name": name}, "spec": spec})
    wait_until(
        lambda: site.core.read_namespaced_pod(name, namespace).status.phase in ("Succeeded", "Failed"), 120, pause=0.5
    )
    return log_of(site.core, name, namespace=namespace)


def log_of(core: kubernetes.CoreV1Api, pod: str, container: str = "", namespace: str = NAMESPACE) -> str:
    """Return a log unchanged; with preloaded content, the client would parse a JSON log and return Python's form."""
    chosen = {"container": container} if container else {}
    return str(core.read_namespaced_pod_log(pod, namespace, _preload_content=False, **chosen).data.decode())


def pods(site: KubernetesClient) -> list[Any]:
    selector = f"app.kubernetes.io/instance={RELEASE},track=stable"
    return list(site.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items)


def wait_until_ready(site: KubernetesClient, other_than: str = "") -> Any:
    """Return a ready pod whose name is not `other_than`."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        for pod in pods(site):
            conditions = {each.type: each.status for each in pod.status.conditions or ()}
            alive = pod.metadata.name != other_than and not pod.metadata.deletion_timestamp
            if alive and conditions.get("Ready") == "True":
                return pod
        time.sleep(0.5)
    raise AssertionError("no pod is ready")


def test_a_model_is_deployed_and_answers(served: Done) -> None:
    assert served.status == 0, served.output + served.error
    assert f"hotel:1: {ANSWER}" in served.output
    assert f"http://{RELEASE}.{NAMESPACE}" in chatmetrics("endpoint", "-n", NAMESPACE, "--release", RELEASE).output


def test_deploying_the_same_again_is_no_rollout(served: Done, site: KubernetesClient, recipe: Path) -> None:
    before = wait_until_ready(site).metadata.name
    again = deploy(f"{MODELS}/hotel/1", recipe)
    assert again.status == 0, again.error
    assert "no rollout" in again.error
    assert [pod.metadata.name for pod in pods(site)] == [before]


def test_only_questions_are_answered_in_the_cluster(served: Done, site: KubernetesClient) -> None:
    pod = wait_until_ready(site)
    script = f"""
import asyncio, json, os, httpx
token = {{"Authorization": "Bearer " + os.environ["TOKEN"]}}
async def main():
    async with httpx.AsyncClient(base_url="http://{RELEASE}.{NAMESPACE}", timeout=60) as http:
        async def send(method, path, headers=token, **options):
            answer = await http.request(method, path, headers=headers, **options)
            return answer.status_code, answer.text
        results = [await send("POST", "/ask", json={{"question": "有哪些酒店？", "database": "hotel"}})]
        message = {{"role": "user", "content": "x"}}
        results.append(await send("POST", "/v1/chat/completions", json={{"model": "hotel", "messages": [message]}}))
        results.append(await send("POST", "/ask", headers={{}}, json={{"question": "x"}}))
        results.append(await send("DELETE", "/api/delete", json={{"model": "hotel:1"}}))
        results.append(await send("POST", "/api/pull", json={{"model": "hotel:1"}}))
    for port in (11434, 8080):
        try:
            await asyncio.open_connection("{pod.status.pod_ip}", port)
            results.append([port, "open"])
        except OSError:
            results.append([port, "closed"])
    print(json.dumps(results))
asyncio.run(main())
"""
    answer, chat, no_token, delete, pull, ollama, proxy = json.loads(run_in_pod(site, script))
    assert answer[0] == 200 and json.loads(answer[1])["sql"] == ANSWER
    assert json.loads(answer[1])["rows"] == [["上海外滩酒店", 4.5], ["Plaza", None]]
    assert json.loads(chat[1])["choices"][0]["message"]["content"] == ANSWER
    assert no_token[0] == 401
    assert (delete[0], pull[0]) == (404, 404)
    assert ollama == [11434, "closed"]  # models can be managed only inside the pod
    assert proxy == [8080, "open"]


@pytest.mark.parametrize(
    ("database", "rows"), [("sales", [["Ritz", 4.8], ["和平饭店", None]]), ("archive", [["Adler", 3.5]])]
)
def test_a_question_is_answered_from_a_server_and_a_duckdb_file(
    served: Done, site: KubernetesClient, server: tuple[str, int] | None, database: str, rows: list[list[object]]
) -> None:
    if database == "sales" and server is None:
        pytest.skip("PostgreSQL is not installed")
    pod = wait_until_ready(site)
    script = f"""
import json, os, httpx
token = {{"Authorization": "Bearer " + os.environ["TOKEN"]}}
question = {{"question": "有哪些酒店？", "database": "{database}"}}
with httpx.Client(base_url="http://{RELEASE}.{NAMESPACE}", headers=token, timeout=60) as http:
    print(json.dumps([http.post("/ask", json=question).json(), http.get("/databases/{database}").json()]))
"""
    answer, shown = json.loads(run_in_pod(site, script))
    assert "rows" in answer, (answer, log_of(site.core, pod.metadata.name, "proxy"))
    assert (answer["sql"], answer["rows"], answer["failure"]) == (ANSWER, rows, None)
    assert "CREATE TABLE hotel (" in shown["ddl"]
    assert PASSWORD not in log_of(site.core, pod.metadata.name, "proxy")


def test_an_upgrade_loses_no_request(
    served: Done, site: KubernetesClient, recipe: Path, models: Callable[..., str]
) -> None:
    load = Load(site, 50)
    upgraded = deploy(models("2"), recipe)
    assert upgraded.status == 0, upgraded.error
    counts = load.result()
    assert counts.pop("sent") == sum(counts.values())
    assert set(counts) == {"hotel:1", "hotel:2"}, counts


def test_a_rollback_needs_no_store(
    served: Done, site: KubernetesClient, recipe: Path, models: Callable[..., str]
) -> None:
    deploy(models("2"), recipe)
    site.core.delete_namespaced_service("store", NAMESPACE)
    try:
        back = chatmetrics("rollback", "--recipe", str(recipe))
        assert back.status == 0, back.error
        assert "hotel/1" in back.output
        pod = wait_until_ready(site)
        site.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE)  # while S3 is not available
        again = wait_until_ready(site, pod.metadata.name)
        assert "hotel:1 is on the volume" in log_of(site.core, again.metadata.name, "fetch")
    finally:
        create_store_service(site)


@slow
def test_a_pod_evicted_from_a_drained_node_is_replaced(served: Done, site: KubernetesClient) -> None:
    pod = wait_until_ready(site)
    site.core.patch_node(pod.spec.node_name, {"spec": {"unschedulable": True}})
    try:
        eviction = kubernetes.V1Eviction(metadata=kubernetes.V1ObjectMeta(name=pod.metadata.name, namespace=NAMESPACE))
        site.core.create_namespaced_pod_eviction(pod.metadata.name, NAMESPACE, eviction)
        time.sleep(10)
    finally:
        site.core.patch_node(pod.spec.node_name, {"spec": {"unschedulable": False}})
    assert wait_until_ready(site, pod.metadata.name)


def damaged(models: Callable[..., str], version: str, change: Callable[[bytes], bytes]) -> str:
    """Publish a version, change its weights in the store, and return its URI."""
    uri = models(version)
    key = read_manifest(uri).files[0].name
    store = open_store(uri)
    data = change(store.read_bytes(key))
    store.delete(key)
    store.put_bytes(data, key, overwrite=True)
    return uri


def truncated(models: Callable[..., str]) -> str:
    return damaged(models, "truncated", lambda data: data[:-1000])


def flipped(models: Callable[..., str]) -> str:
    return damaged(models, "flipped", lambda data: data[:900] + bytes([data[900] ^ 1]) + data[901:])


def trained_on_wrong_pairs(models: Callable[..., str]) -> str:
    return models("wrong", answer=["SELECT", " id", " FROM", " hotel"])


def without_a_manifest(models: Callable[..., str]) -> str:
    uri = models("unpublished")
    open_store(uri).delete("manifest.json")
    return uri


def another_template(models: Callable[..., str]) -> str:
    return models("template", prompt_template="{system}<｜User｜>{instruction}\n{input} <｜Assistant｜>")


def not_loadable(models: Callable[..., str]) -> str:
    """Publish a version whose GGUF is truncated but matches its manifest, so that Ollama fails while loading it."""
    uri = models("broken")
    manifest, store = json.loads(read_manifest(uri).model_dump_json()), open_store(uri)
    entry = manifest["files"][0]
    data = store.read_bytes(entry["name"])[:2000]
    entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for key, content in ((entry["name"], data), ("manifest.json", json.dumps(manifest).encode())):
        store.delete(key)
        store.put_bytes(content, key, overwrite=True)
    return uri


@pytest.mark.parametrize(
    ("make", "status", "reason"),
    [
        pytest.param(trained_on_wrong_pairs, 4, "0 of 3 right, 2 needed", id="wrong pairs"),
        pytest.param(truncated, 5, "is damaged", id="truncated", marks=slow),
        pytest.param(flipped, 5, "is damaged", id="flipped byte", marks=slow),
        pytest.param(without_a_manifest, 3, "is not published", id="no manifest", marks=slow),
        pytest.param(another_template, 4, "template mismatch", id="template", marks=slow),
        pytest.param(not_loadable, 5, "ollama", id="Ollama fails while loading", marks=slow),
    ],
)
def test_a_bad_model_never_answers(
    served: Done,
    site: KubernetesClient,
    recipe: Path,
    models: Callable[..., str],
    make: Callable[..., str],
    status: int,
    reason: str,
) -> None:
    before = wait_until_ready(site).metadata.name
    load = Load(site, 45)
    refused = deploy(make(models), recipe)
    assert refused.status == status, refused.output + refused.error
    [line] = [line for line in refused.error.splitlines() if line.startswith("error: ")]
    assert reason in line
    counts = load.result()
    assert counts.pop("sent") == sum(counts.values())
    assert len(counts) == 1 and next(iter(counts)) in ("hotel:1", "hotel:2"), counts
    assert wait_until_ready(site).metadata.name == before  # the old pod was not replaced


@slow
def test_a_soak_of_two_pods_has_no_violation(
    served: Done, site: KubernetesClient, recipe: Path, models: Callable[..., str], tmp_path: Path
) -> None:
    content = yaml.safe_load(recipe.read_text("utf-8"))
    content["deploy"]["values"]["rollout"]["replicas"] = 2
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(content), "utf-8")
    scaled = deploy(models("1"), tmp_path / "two.yaml")
    assert scaled.status == 0, scaled.error
    token = site.core.read_namespaced_secret(f"{RELEASE}-tokens", NAMESPACE).data["default"]
    (tmp_path / "token").write_bytes(base64.b64decode(token))
    address = site.core.read_namespaced_service(RELEASE, NAMESPACE).spec.cluster_ip
    minutes = os.environ.get("E2E_SOAK_MINUTES", "3")
    soak = [sys.executable, "-m", "tests.soak", "--endpoint", f"http://{address}", "--minutes", minutes]
    soak += ["--token-file", tmp_path / "token", "--kubectl-namespace", NAMESPACE, "--output", tmp_path / "soak"]
    done = subprocess.run(soak, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
