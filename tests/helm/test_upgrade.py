"""An upgrade of the chart or of a value restarts pods only if it has to."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, Rendered, needs_helm, render, template

pytestmark = needs_helm

# Labels that Kubernetes does not allow to change: those of version 0.1.0, and so of every later one.
SERVER = {
    "app.kubernetes.io/name": "chatmetrics-ollama",
    "app.kubernetes.io/instance": "hotel",
    "app.kubernetes.io/component": "server",
}
SELECTORS = {
    "hotel": SERVER | {"track": "stable"},
    "hotel-canary": SERVER | {"track": "canary"},
    "hotel-anythingllm": SERVER | {"app.kubernetes.io/component": "anythingllm"},
}


@pytest.mark.parametrize(("deployment", "labels"), SELECTORS.items())
def test_selectors_are_those_of_the_first_version(deployment: str, labels: dict[str, str]) -> None:
    spec = render("everything").one("Deployment", deployment)["spec"]
    assert spec["selector"] == {"matchLabels": labels}
    assert labels.items() <= spec["template"]["metadata"]["labels"].items()


def test_claims_are_those_of_the_first_version() -> None:
    assert render().one("PersistentVolumeClaim", "hotel-models")["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "40Gi"}},
    }
    assert render("everything").one("PersistentVolumeClaim", "hotel-anythingllm")["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "10Gi"}},
    }


@pytest.mark.parametrize("example", ["hotel", "everything"])
def test_a_new_version_of_the_chart_alone_restarts_no_pod(example: str, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(CHART, newer)
    file = newer / "Chart.yaml"
    content = yaml.safe_load(file.read_text("utf-8"))
    file.write_text(yaml.safe_dump(content | {"version": "9.9.9"}), "utf-8")
    now, later = render(example), render(example, chart=newer)
    assert later.one("Deployment")["metadata"]["labels"]["helm.sh/chart"] == "chatmetrics-ollama-9.9.9"
    for name in now.pods():
        if name.startswith("Deployment/"):
            deployment = name.removeprefix("Deployment/")
            assert later.one("Deployment", deployment)["spec"] == now.one("Deployment", deployment)["spec"]


def pod_template(*sets: str) -> Any:
    return render("hotel", *sets).one("Deployment")["spec"]["template"]


def test_another_model_starts_new_pods() -> None:
    assert pod_template() != pod_template('models=[{"name": "hotel", "uri": "s3://models/hotel/4"}]')


@pytest.mark.parametrize(
    "value", ["limits.queue=8", 'limits.rate="1/second"', "query.maxRows=5", "ollama.concurrency=2"]
)
def test_another_limit_starts_new_pods(value: str) -> None:
    assert pod_template() != pod_template(value)


@pytest.mark.parametrize(
    "value", ['auth.clients=["default", "shop"]', "rollout.replicas=3", "service.port=8080", "smokeTest.enabled=false"]
)
def test_a_value_that_pods_do_not_read_starts_no_new_pods(value: str) -> None:
    assert pod_template() == pod_template(value)


def test_the_canary_can_be_added_and_removed_without_restarting_stable_pods() -> None:
    with_canary = render("everything").one("Deployment")
    assert with_canary == render("everything", "canary.enabled=false").one("Deployment")


def test_the_same_values_render_the_same_documents_except_tokens() -> None:
    def documents() -> list[Any]:
        rendered = Rendered(template().stdout)
        return [document for document in rendered.documents if document["kind"] != "Secret"]

    assert documents() == documents()


def test_two_releases_in_one_namespace_have_different_names() -> None:
    one, other = Rendered(template().stdout), Rendered(template(release="bank").stdout)
    names = [{(d["kind"], d["metadata"]["name"]) for d in rendered.documents} for rendered in (one, other)]
    assert not names[0] & names[1]
    assert one.one("Service")["spec"]["selector"].items() != other.one("Service", "bank")["spec"]["selector"].items()
