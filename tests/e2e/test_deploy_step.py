"""Deployments with real Helm on a real cluster, with a small chart that can fail in every way within seconds."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.deploy.helm import Helm
from chatmetrics.components.deploy.kubernetes_client import RIGHTS, KubernetesClient, kubeconfig
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.image import image
from chatmetrics.components.storage.manifest import publish, stage
from tests.command import command_line
from tests.e2e.conftest import Done, chatmetrics, deployer_manifests, deployer_token

NAMESPACE = "e2e-deploy"
STORED = {**os.environ, "HELM_DRIVER": "configmap"}  # where the step stores Helm's releases
slow = pytest.mark.slow

# It has the names, labels and containers of helm/chatmetrics-ollama. The model's version decides how its pod behaves.
CHART = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .Release.Name }}
  labels: &labels
    app.kubernetes.io/instance: {{ .Release.Name }}
    app.kubernetes.io/component: server
    track: stable
spec:
  replicas: 1
  selector: {matchLabels: *labels}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: *labels}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, runAsUser: 65532}
      volumes: [{name: tokens, secret: {secretName: the-tokens, optional: true}}]
      initContainers:
        - name: fetch
          image: {{ .Values.image }}
          terminationMessagePolicy: FallbackToLogsOnError
          env: [{name: URI, value: {{ (index .Values.models 0).uri }}}]
          command: [sh, -c]
          args:
            - |
              case $URI in
                *damaged*) echo 'error: hotel.gguf: its sha256 is not that of the manifest' >&2; exit 6;;
              esac
      containers:
        - name: proxy
          image: {{ .Values.image }}
          terminationMessagePolicy: FallbackToLogsOnError
          resources: {{ .Values.ollama.resources | toJson }}
          env: [{name: URI, value: {{ (index .Values.models 0).uri }}}]
          command: [sh, -c]
          args:
            - |
              case $URI in
                *wrong*) echo 'error: hotel:3 answers 1 of 4 questions right; wrong: q2, q3, q4' >&2; exit 4;;
                *stuck*) exec sleep 600;;
              esac
              exec python3 -m http.server 8080 --directory /tmp
          readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .Release.Name }}
  labels:
    app.kubernetes.io/instance: {{ .Release.Name }}
    app.kubernetes.io/component: server
    track: stable
spec:
  selector: {app.kubernetes.io/instance: {{ .Release.Name }}, app.kubernetes.io/component: server}
  ports: [{name: http, port: 8080}]
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-smoke
  annotations:
    helm.sh/hook: post-install,post-upgrade
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {app.kubernetes.io/instance: {{ .Release.Name }}, app.kubernetes.io/component: smoke}}
    spec:
      restartPolicy: Never
      containers:
        - name: stable
          image: {{ .Values.image }}
          terminationMessagePolicy: FallbackToLogsOnError
          env: [{name: URI, value: {{ (index .Values.models 0).uri }}}]
          command: [python3, -c]
          args:
            - |
              import os, sys, urllib.request
              status = urllib.request.urlopen("http://{{ .Release.Name }}:8080").status
              if "silent" in os.environ["URI"]: sys.exit("error: hotel does not answer")
              print(f"hotel: SELECT 1 ({status})")
"""


@pytest.fixture(scope="module", autouse=True)
def chart_and_namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Create the chart, and the namespace for the releases."""
    folder = tmp_path_factory.mktemp("chart")
    (folder / "templates").mkdir()
    (folder / "templates" / "all.yaml").write_text(CHART)
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: stand-in, version: 1.0.0}")
    (folder / "values.yaml").write_text(json.dumps({"image": image("preprocess")}))
    # This waits until the namespace of an earlier session is deleted.
    subprocess.run(["kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found"], check=True)
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATMETRICS_CHART", str(folder))
        yield
    subprocess.run(["kubectl", "delete", "namespace", NAMESPACE, "--wait=false"], check=True)


@pytest.fixture
def release(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"r{abs(hash(request.node.nodeid)) % 10**8}"
    yield name
    subprocess.run(["helm", "uninstall", name, "-n", NAMESPACE, "--ignore-not-found"], check=True, env=STORED)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that publishes a model under a version, which decides how its pod behaves."""
    folder = tmp_path_factory.mktemp("models")

    def make(version: str) -> str:
        gguf = folder / f"{version}.gguf"
        gguf.write_bytes(b"GGUF" + version.encode())
        return publish(stage((folder / "store").as_uri(), "hotel", version, [gguf], {}))

    return make


def deploy(release: str, uri: str, *words: str) -> Done:
    return chatmetrics("deploy", uri, "--namespace", NAMESPACE, "--release", release, "--timeout", "5", *words)


def helm_history(release: str) -> Any:
    output = subprocess.run(
        ["helm", "history", release, "-n", NAMESPACE, "-o", "json"], capture_output=True, check=True, env=STORED
    ).stdout
    return json.loads(output)


def error_of(done: Done) -> str:
    [line] = [line for line in done.error.splitlines() if line.startswith("error: ")]
    return line


def served_uri(release: str) -> str:
    """Return the URI of the model that the release's ready pod serves."""
    selector = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=server"
    pods = KubernetesClient(NAMESPACE).core.list_namespaced_pod(NAMESPACE, label_selector=selector).items
    [ready] = [pod for pod in pods if pod.status.container_statuses[0].ready and not pod.metadata.deletion_timestamp]
    return str(next(entry.value for entry in ready.spec.containers[0].env if entry.name == "URI"))


def test_a_model_is_served_and_deploying_it_again_is_no_rollout(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    uri = model("1")
    first = deploy(release, uri)
    assert first.status == 0, first.error
    assert f"endpoint: http://{release}.{NAMESPACE}.svc:8080" in first.output
    assert "revision 1, 1 pods ready" in first.output
    assert "asked:    hotel: SELECT 1 (200)" in first.output
    assert "get secret the-tokens" in first.output
    again = deploy(release, uri)
    assert again.status == 0, again.error
    assert "no rollout" in again.error
    # Without a recipe a release keeps its values; a changed value causes a rollout.
    other = deploy(release, uri, "--set", "deploy.values.ollama.resources.requests.cpu=10m")
    assert other.status == 0, other.error
    assert [entry["revision"] for entry in helm_history(release)] == [1, 2]
    found = chatmetrics("endpoint", "--namespace", NAMESPACE, "--release", release)
    assert f"model:    hotel, {uri}" in found.output
    assert "revision 2" in found.output


def test_a_model_that_fails_its_acceptance_test_leaves_the_old_one_serving(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    good = model("1")
    assert deploy(release, good).status == 0
    bad = deploy(release, model("wrong"))
    assert bad.status == 4, bad.error
    assert error_of(bad) == (
        "error: hotel:wrong is not deployed, revision 3 keeps serving: "
        "hotel:3 answers 1 of 4 questions right; wrong: q2, q3, q4"
    )
    assert served_uri(release) == good
    # The restored revision has the same content, so there is no rollout.
    assert "no rollout" in deploy(release, good).error


def test_a_first_model_that_fails_leaves_nothing_behind(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    bad = deploy(release, model("wrong"))
    assert bad.status == 4, bad.error
    assert "there was no earlier version, so nothing serves: " in error_of(bad)
    nothing = chatmetrics("endpoint", "--namespace", NAMESPACE, "--release", release)
    assert nothing.status == 3
    assert f"there is no release {release} in {NAMESPACE}" in nothing.error


def test_a_failed_smoke_test_restores_the_old_version(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    good = model("1")
    assert deploy(release, good).status == 0
    bad = deploy(release, model("silent"))
    assert bad.status == 5, bad.error
    assert "smoke test: hotel does not answer" in error_of(bad)
    assert served_uri(release) == good


def test_a_pod_that_no_node_accepts_is_reported_with_the_scheduler_s_reason(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    large = deploy(
        release, model("1"), "--timeout", "0.2", "--set", "deploy.values.ollama.resources.requests.memory=900Gi"
    )
    assert large.status == 5, large.error
    assert "Insufficient memory" in error_of(large)


def test_an_image_that_cannot_be_pulled_is_named(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    missing = deploy(release, model("1"), "--timeout", "0.3", "--set", "deploy.values.image=localhost/no:missing")
    assert missing.status == 5, missing.error
    assert "fetch: the image localhost/no:missing cannot be pulled: " in error_of(missing)


@slow
def test_a_damaged_file_ends_the_deployment_before_its_timeout(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    good = model("1")
    assert deploy(release, good).status == 0
    damaged = deploy(release, model("damaged"), "--timeout", "60")
    assert damaged.status == 5, damaged.error
    assert "revision 3 keeps serving: " in error_of(damaged)
    assert error_of(damaged).endswith("hotel.gguf: its sha256 is not that of the manifest")
    assert served_uri(release) == good


def test_a_rollback_skips_failures_and_earlier_rollbacks(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    where = ("--namespace", NAMESPACE, "--release", release)
    first, second = model("1"), model("2")
    assert deploy(release, first).status == 0
    nowhere = chatmetrics("rollback", *where)
    assert nowhere.status == 3
    assert "has served nothing else" in nowhere.error
    assert deploy(release, second).status == 0
    assert deploy(release, model("wrong")).status == 4  # revision 3, and 4, which equals 2
    back = chatmetrics("rollback", *where)
    assert back.status == 0, back.error
    assert f"model:    hotel, {first}" in back.output
    assert served_uri(release) == first
    failed = chatmetrics("rollback", "--revision", "3", *where)
    assert failed.status == 3
    assert "choose one of 1, 2, 4, 5" in failed.error
    assert chatmetrics("rollback", "--revision", "2", *where).status == 0
    assert served_uri(release) == second


def test_ctrl_c_restores_the_old_version(cluster: KubernetesClient, release: str, model: Callable[[str], str]) -> None:
    good = model("1")
    assert deploy(release, good).status == 0
    with starting(release, model("stuck")) as process:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert [entry["status"] for entry in helm_history(release)][-1] == "deployed"
    assert served_uri(release) == good


@slow
def test_a_release_left_by_a_killed_deployer_is_repaired(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    good = model("1")
    assert deploy(release, good).status == 0
    with starting(release, model("stuck")) as process:
        kill_with_children(process.pid)
    assert helm_history(release)[-1]["status"] == "pending-upgrade"
    next_one = deploy(release, model("2"))
    assert next_one.status == 0, next_one.error
    assert "waiting for" in next_one.error  # for the lease of the killed deployer
    assert "was left pending-upgrade: rolling back to 1" in next_one.error


@slow
def test_a_first_installation_left_by_a_killed_deployer_is_removed(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    with starting(release, model("stuck")) as process:
        kill_with_children(process.pid)
    assert helm_history(release)[-1]["status"] == "pending-install"
    next_one = deploy(release, model("1"))
    assert next_one.status == 0, next_one.error
    assert "was left pending-install: removing it" in next_one.error


def test_simultaneous_deployments_run_one_after_the_other(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    words = ["deploy", "--namespace", NAMESPACE, "--release", release]
    started = [
        subprocess.Popen(command_line(*words, model(version)), stderr=subprocess.PIPE, text=True)
        for version in ("1", "2", "3")
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    assert [entry["status"] for entry in helm_history(release)] == ["superseded", "superseded", "deployed"]
    assert sum("waiting for" in text for text in errors) >= 1


def test_a_release_that_helm_stored_in_secrets_is_not_installed_again(
    cluster: KubernetesClient, release: str, model: Callable[[str], str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELM_DRIVER", "secret")
        assert deploy(release, model("1")).status == 0
        patch.delenv("HELM_DRIVER")
        refused = deploy(release, model("2"))
        assert refused.status == 5, refused.error
        assert "no record of Helm about it: if its records are in Secrets, move them" in error_of(refused)
        patch.setenv("HELM_DRIVER", "secret")
        subprocess.run(["helm", "uninstall", release, "-n", NAMESPACE], check=True)


def test_the_account_of_deployer_yaml_can_deploy_in_its_namespace_only(
    cluster: KubernetesClient, release: str, model: Callable[[str], str], tmp_path: Path
) -> None:
    manifests = deployer_manifests(NAMESPACE, NAMESPACE, release)
    subprocess.run(["kubectl", "apply", "-f", "-"], input=manifests, text=True, check=True)
    here = KubernetesClient(NAMESPACE)
    (tmp_path / "token").write_text(deployer_token(here.core, NAMESPACE))
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        service = here.core.read_namespaced_service("kubernetes", "default").spec
        patch.setenv("KUBERNETES_SERVICE_HOST", service.cluster_ip)
        patch.setenv("KUBERNETES_SERVICE_PORT", str(service.ports[0].port))
        config = stack.enter_context(kubeconfig(tmp_path, here.api.configuration.ssl_ca_cert))
        assert "token" not in json.loads(Path(config).read_text())["users"][0]["user"]
        with pytest.raises(ServiceError, match=r"deployer\.yaml"):
            Helm("default", config).history("any")
        with pytest.raises(ServiceError, match=r"cannot list resource.*; helm/deployer\.yaml"):
            KubernetesClient("kube-system", config, RIGHTS).pods("")
        deployer = KubernetesClient(NAMESPACE, config, RIGHTS)
        for refused in (
            lambda: deployer.call(deployer.core.list_namespaced_secret, NAMESPACE),
            lambda: deployer.find(deployer.core.read_namespaced_secret, "chatmetrics-deployer", NAMESPACE),
            lambda: deployer.call(deployer.core.delete_namespaced_persistent_volume_claim, "any", NAMESPACE),
        ):
            with pytest.raises(ServiceError, match=r"refused \(403\)"):
                refused()
        assert deployer.find(deployer.core.read_namespaced_secret, f"{release}-tokens", NAMESPACE) is None
        patch.setenv("KUBECONFIG", config)
        done = deploy(release, model("1"))
        assert done.status == 0, done.error
        assert deploy(release, model("wrong")).status == 4
        assert deploy(release, model("2")).status == 0
        assert chatmetrics("rollback", "--namespace", NAMESPACE, "--release", release).status == 0
        # A token bound to a secret is revoked with it.
        here.core.delete_namespaced_secret("chatmetrics-deployer", NAMESPACE)
        wait_until_refused(deployer)


def wait_until_refused(deployer: KubernetesClient) -> None:
    """Wait until the API server has noticed that the secret was deleted; it remembers valid tokens for ten seconds."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            deployer.pods("")
        except ServiceError as error:
            assert "refused (401)" in str(error)
            return
        time.sleep(1)
    raise AssertionError("the token is still valid")


@contextlib.contextmanager
def starting(release: str, uri: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the deployment of a model that does not become ready, and yield its process when the pod runs."""
    words = ["deploy", uri, "--namespace", NAMESPACE, "--release", release, "--timeout", "5"]
    with subprocess.Popen(command_line(*words), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not any(uri in json.dumps(pod) for pod in running_pods(release)):
            assert process.poll() is None
            assert time.monotonic() < deadline, "no pod"
            time.sleep(0.5)
        yield process


def running_pods(release: str) -> list[Any]:
    selector = f"app.kubernetes.io/instance={release}"
    output = subprocess.run(
        ["kubectl", "get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "json"], capture_output=True, check=True
    ).stdout
    return [pod for pod in json.loads(output)["items"] if pod["status"]["phase"] == "Running"]


def kill_with_children(pid: int) -> None:
    """Kill the process and its children, so that helm is killed as well, as when a pod's node is lost."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (pid, *map(int, children)):
        os.kill(each, signal.SIGKILL)
