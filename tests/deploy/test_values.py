import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from chatmetrics.components.deploy.values import chart_path, chart_values, content_hash, published
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.manifest import manifest_bytes, sign_manifest
from chatmetrics.pipelines.recipe import load_recipe
from tests.deploy.conftest import Publish
from tests.storage.keys import key_pair


def test_the_model_replaces_its_former_version_and_other_values_are_kept(model: Publish) -> None:
    others = [{"name": "bank", "uri": model("bank")}, {"name": "hotel", "uri": "s3://old/1", "threshold": 0.9}]
    values = chart_values({"models": others, "service": {"port": 8080}}, "hotel", model("hotel"))
    assert values["models"] == [others[0], {"name": "hotel", "uri": model("hotel"), "threshold": 0.9}]
    assert values["service"] == {"port": 8080}
    assert others[1]["uri"] == "s3://old/1"


def test_a_new_model_comes_first(model: Publish) -> None:
    others = [{"name": "bank", "uri": model("bank")}]
    assert [each["name"] for each in chart_values({"models": others}, "hotel", model())["models"]] == ["hotel", "bank"]


@pytest.mark.parametrize("models", ["hotel", [{"uri": "s3://a/b"}], ["hotel"]])
def test_models_that_are_not_a_list_of_models_are_refused(models: object, model: Publish) -> None:
    with pytest.raises(InputError, match=r"deploy\.values\.models"):
        chart_values({"models": models}, "hotel", model())


def test_memory_is_computed_from_all_models_and_their_contexts(model: Publish) -> None:
    bank = {"name": "bank", "uri": model("bank", mib=100)}
    values = chart_values({"models": [bank], "ollama": {"concurrency": 4}}, "hotel", model("hotel", mib=300))
    # 128 MiB for Ollama, 192 for each model's runner, the weights, and a tenth of the weights for each context.
    expected = f"{128 + 2 * 192 + int(400 * 1.4)}Mi"
    resources = values["ollama"]["resources"]
    assert resources == {"requests": {"memory": expected}, "limits": {"memory": expected}}
    kept = chart_values({"ollama": {"resources": {"requests": {"cpu": "2"}}}}, "hotel", model("hotel", mib=300))
    assert kept["ollama"]["resources"]["requests"] == {"cpu": "2", "memory": "650Mi"}


def test_a_given_memory_limit_is_kept(model: Publish) -> None:
    given = {"ollama": {"resources": {"limits": {"memory": "9Gi"}}}}
    assert chart_values(given, "hotel", model())["ollama"] == given["ollama"]


def test_only_a_signed_model_is_deployed_if_the_values_have_a_key(model: Publish, tmp_path: Path) -> None:
    uri, (private, public) = model(), key_pair(tmp_path / "keys")
    given = {"manifestKey": public}
    with pytest.raises(StorageError, match=r"is not signed: .*manifest\.sig does not exist"):
        chart_values(given, "hotel", uri)
    content = manifest_bytes(uri)
    sign_manifest(uri, content, key_pair(tmp_path / "other")[0], "KEY")
    with pytest.raises(StorageError, match="is not signed with the key of manifestKey"):
        chart_values(given, "hotel", uri)
    sign_manifest(uri, content, private, "KEY")
    assert chart_values(given, "hotel", uri)["manifestKey"] == public
    assert chart_values({}, "hotel", uri)["models"] == [{"name": "hotel", "uri": uri}]


def test_a_candidate_is_not_deployed(candidate: Publish) -> None:
    uri = candidate()
    folder = uri.removesuffix("/candidate.json")
    for given in (uri, folder, f"{folder}/manifest.json"):
        with pytest.raises(InputError, match="not published"):
            published(given)


def test_a_local_path_or_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which pods cannot read"):
        published(str(tmp_path))
    with pytest.raises(StorageError, match="nothing"):
        published((tmp_path / "nothing").as_uri())


def test_only_the_manifest_that_passed_the_gate_is_deployed(model: Publish) -> None:
    uri = model()
    _, sha256 = published(uri)
    assert chart_values({}, "hotel", uri, sha256)["models"] == [{"name": "hotel", "uri": uri, "sha256": sha256}]
    assert published(uri, sha256)[1] == sha256
    path = Path(uri.removeprefix("file://"))
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"quantization": ""', '"quantization": "Q8_0"'))
    with pytest.raises(StorageError, match=f"is not the manifest that passed the gate: .* instead of {sha256}"):
        published(uri, sha256)
    with pytest.raises(StorageError, match="is not the manifest that passed the gate"):
        chart_values({"models": [{"name": "old", "uri": uri, "sha256": sha256}]}, "hotel", model("other"))


def test_the_chart_is_found_next_to_the_package_or_by_the_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHATMETRICS_CHART", raising=False)
    assert yaml.safe_load((chart_path() / "Chart.yaml").read_text())["name"] == "chatmetrics-ollama"
    monkeypatch.setenv("CHATMETRICS_CHART", str(tmp_path))
    with pytest.raises(InputError, match="CHATMETRICS_CHART"):
        chart_path()
    (tmp_path / "Chart.yaml").touch()
    assert chart_path() == tmp_path


def test_the_content_hash_depends_on_chart_and_values_only(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "a.yaml").write_text("a")
    first = content_hash(tmp_path, {"a": 1, "b": [2]})
    assert content_hash(tmp_path, {"b": [2], "a": 1}) == first
    assert content_hash(tmp_path, {"a": 1, "b": [3]}) != first
    (tmp_path / "templates" / "a.yaml").write_text("b")
    assert content_hash(tmp_path, {"a": 1, "b": [2]}) != first


@pytest.mark.skipif(not shutil.which("helm"), reason="helm is not on the PATH")
def test_the_chart_accepts_the_values_of_a_recipe(model: Publish, tmp_path: Path) -> None:
    recipe = load_recipe("hotel-demo", ["deploy.enabled=true", "deploy.values.proxy.resources.requests.cpu=50m"])
    values = chart_values(recipe.deployment().values, "hotel", model())
    values["models"][0]["uri"] = "s3://models/hotel/1"
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    command = ["helm", "template", "chatmetrics", str(chart_path()), "--values", str(tmp_path / "values.yaml")]
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rendered = [document for document in yaml.safe_load_all(done.stdout) if document]
    [deployment] = [document for document in rendered if document["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    containers = {container["name"]: container for container in (*pod["initContainers"], *pod["containers"])}
    # The names by which the step recognizes a failed acceptance test and a damaged file.
    assert {"fetch", "proxy", "ollama"} <= containers.keys()
    assert containers["ollama"]["resources"]["limits"]["memory"] == "322Mi"
    assert containers["proxy"]["image"] == containers["fetch"]["image"]
    reference = recipe.deployment().values["image"]
    assert isinstance(reference, dict)
    assert containers["proxy"]["image"].startswith(str(reference["repository"]))
    credentials = [entry for entry in containers["fetch"]["env"] if entry["name"] == "AWS_ACCESS_KEY_ID"]
    assert credentials[0]["valueFrom"]["secretKeyRef"] == {"name": "mlpipeline-minio-artifact", "key": "accesskey"}
    # The labels by which the step finds the release's pods and Service.
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/instance"] == "chatmetrics"
    [service] = [document for document in rendered if document["kind"] == "Service"]
    found = service["metadata"]["labels"]
    assert (found["app.kubernetes.io/component"], found["track"]) == ("server", "stable")
    assert service["spec"]["ports"][0]["name"] == "http"
