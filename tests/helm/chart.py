"""Helpers that render the chart with the helm program, as its users do."""

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "helm" / "chatmetrics-ollama"
EXAMPLES = CHART / "ci"
NAMES = ("hotel", "gpu", "everything")
APIS = ("gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1")

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not on the PATH")

Document = dict[str, Any]


class Rendered:
    """The rendered documents, accessible by kind and name."""

    def __init__(self, text: str) -> None:
        self.documents: list[Document] = [
            document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document
        ]

    def one(self, kind: str, name: str = "hotel") -> Document:
        (found,) = (d for d in self.documents if (d["kind"], d["metadata"]["name"]) == (kind, name))
        return found

    def has(self, kind: str, name: str = "hotel") -> bool:
        return any((d["kind"], d["metadata"]["name"]) == (kind, name) for d in self.documents)

    def pod(self, name: str = "hotel") -> Document:
        """The pod's spec of a Deployment."""
        spec: Document = self.one("Deployment", name)["spec"]["template"]["spec"]
        return spec

    def container(self, container: str, name: str = "hotel") -> Document:
        pod = self.pod(name)
        (found,) = (c for c in pod.get("initContainers", []) + pod["containers"] if c["name"] == container)
        return found

    def release(self, name: str = "hotel") -> Document:
        """The release.json in the pods of a Deployment."""
        annotations = self.one("Deployment", name)["spec"]["template"]["metadata"]["annotations"]
        content: Document = json.loads(annotations["chatmetrics/release.json"])
        return content

    def pods(self) -> dict[str, Document]:
        """The specs of all pods, by kind and name of the object that creates them."""
        found = {}
        for document in self.documents:
            name = f"{document['kind']}/{document['metadata']['name']}"
            if document["kind"] == "Pod":
                found[name] = document["spec"]
            elif "template" in document.get("spec", {}):
                found[name] = document["spec"]["template"]["spec"]
        return found


def containers_of(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(container: Document) -> dict[str, str]:
    """The container's variables; the value of one with a source is the source, as JSON."""
    return {entry["name"]: entry.get("value", json.dumps(entry.get("valueFrom"))) for entry in container["env"]}


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *words], capture_output=True, text=True)


def template(
    example: str = "hotel", *sets: str, release: str = "hotel", chart: Path = CHART, apis: tuple[str, ...] = APIS
) -> subprocess.CompletedProcess[str]:
    """Run `helm template` with an example's values and further ones, each as KEY=JSON."""
    values = [f"--values={EXAMPLES / example}.yaml"] if example else []
    options = [*values, *(f"--set-json={entry}" for entry in sets), *(f"--api-versions={api}" for api in apis)]
    return helm("template", release, str(chart), *options)


@functools.cache
def render(example: str = "hotel", *sets: str, chart: Path = CHART) -> Rendered:
    """Return the documents that `template` renders."""
    done = template(example, *sets, chart=chart)
    assert done.returncode == 0, done.stderr
    return Rendered(done.stdout)


def refusal(example: str, *sets: str, release: str = "hotel", apis: tuple[str, ...] = APIS) -> str:
    """Return Helm's error for wrong values."""
    done = template(example, *sets, release=release, apis=apis)
    assert done.returncode != 0, "these values were accepted"
    return done.stderr
