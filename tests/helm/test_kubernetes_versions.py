"""The manifests are valid for every supported version of Kubernetes."""

import functools

import kubernetes_validate
import pytest
import yaml

from tests.helm.chart import CHART, NAMES, helm, needs_helm, render

pytestmark = needs_helm

OLDEST = 28
NEWEST = int(kubernetes_validate.latest_version().split(".")[1])
CUSTOM = {"HTTPRoute", "ServiceMonitor"}  # of the Gateway API and the Prometheus operator, which have their own schemas


@functools.cache
def is_valid(manifest: str, version: str) -> bool:
    kubernetes_validate.validate(yaml.safe_load(manifest), version, strict=True)
    return True


@pytest.mark.parametrize("version", [f"1.{minor}" for minor in range(OLDEST, NEWEST + 1)])
def test_manifests_are_valid(version: str) -> None:
    for example in NAMES:
        documents = [document for document in render(example).documents if document["kind"] not in CUSTOM]
        assert documents
        for document in documents:
            assert is_valid(yaml.safe_dump(document), version)


@pytest.mark.parametrize(
    ("version", "accepted"), [("v1.27.16", False), ("v1.28.0", True), ("v1.30.2-gke.1", True), ("v1.37.0", True)]
)
def test_an_unsupported_version_is_refused(version: str, accepted: bool) -> None:
    options = (f"--values={CHART / 'ci' / 'hotel.yaml'}", f"--kube-version={version}")
    done = helm("template", "hotel", str(CHART), *options)
    assert (done.returncode == 0) is accepted
    assert accepted or "incompatible with Kubernetes v1.27.16" in done.stderr
