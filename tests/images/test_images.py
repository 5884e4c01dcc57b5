"""The images: locks, Containerfiles, tags, and `chatmetrics images`."""

import hashlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner, Result

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.image import image, parent_image, source_hash
from chatmetrics.pipelines.cli.images import app
from tests.images.locks import locked

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
CONTAINERFILES = {path.parent.name: path.read_text("utf-8") for path in sorted(IMAGES.glob("*/Containerfile"))}
LOCKS = {path.relative_to(IMAGES).as_posix(): path for path in sorted(IMAGES.rglob("*.lock"))}
STEPS = sorted(set(CONTAINERFILES) - {"torch"})
STEP_IMAGES = [
    path.parent.name for path in sorted(IMAGES.glob("*/requirements.lock")) if "torch" not in path.parent.name
]


# --- Locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEP_IMAGES)
def test_lock_contains_every_requirement_of_the_extra(name: str) -> None:
    versions = locked(parent_image(name), name)
    for text in EXTRAS[name.partition("-")[0]]:
        requirement = Requirement(text)
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{text} is missing: run `make lock`"
        assert requirement.specifier.contains(version), f"{version} is not {text}: run `make lock`"


@pytest.mark.parametrize("name", [name for name in STEP_IMAGES if "-" not in name])
def test_image_has_the_versions_that_the_tests_run_with(name: str) -> None:
    tested = dict(re.findall(r"(?m)^(\S+)==(\S+)", (ROOT / "requirements.lock").read_text("utf-8")))
    assert locked(parent_image(name), name).items() <= tested.items()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_by_version_and_hash(lock: str) -> None:
    text = LOCKS[lock].read_text("utf-8").replace("\\\n", " ")
    packages = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert packages
    assert [line for line in packages if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)] == []


@pytest.mark.parametrize("name", [name for name in STEP_IMAGES if not parent_image(name)])
def test_image_without_a_parent_image_has_no_torch(name: str) -> None:
    assert not {package for package in locked(name) if package.startswith(("torch", "nvidia", "triton"))}


@pytest.mark.parametrize("name", [name for name in STEP_IMAGES if parent_image(name)])
def test_packages_of_the_parent_image_are_not_installed_again(name: str) -> None:
    assert not locked(name).keys() & locked(parent_image(name)).keys()


def test_variant_for_older_gpus_is_built_on_a_torch_that_supports_them() -> None:
    assert parent_image("train-cu126") == "torch-cu126"
    assert locked("torch-cu126")["torch"] == "2.7.1"


# --- Containerfiles --------------------------------------------------------------------------------------------------


def test_containerfiles_are_generated_from_their_templates() -> None:
    generated = runpy.run_path(str(IMAGES / "containerfiles.py"))["containerfiles"]()
    texts = {path.parent.name: text for path, text in generated}
    assert texts == CONTAINERFILES, "run `python images/containerfiles.py`"


def instructions(name: str) -> list[tuple[str, str]]:
    lines = CONTAINERFILES[name].replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_image_runs_as_a_numeric_user(name: str) -> None:
    assert [value for word, value in instructions(name) if word == "USER"][-1] == "65532:65532"


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_base_and_index_are_build_arguments(name: str) -> None:
    stages = [value.split()[0] for word, value in instructions(name) if word == "FROM"]
    assert set(stages) == {"${BASE}", *{"deploy": ["${HELM}"], "train": ["runtime"]}.get(name, [])}
    arguments = {value.partition("=")[0] for word, value in instructions(name) if word == "ARG"}
    assert {"BASE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "SOURCE_HASH", "VERSION", "BASE_NAME"} <= arguments
    assert ":latest" not in CONTAINERFILES[name]


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_only_locked_packages_are_installed_and_nothing_is_compiled(name: str) -> None:
    runs = [value for word, value in instructions(name) if word == "RUN"]
    installs = [run for run in runs if "pip install" in run]
    assert installs
    for run in installs:
        assert {"--no-deps", "--require-hashes", "--only-binary", "--no-compile"} <= set(run.split())
    forbidden = {"apt-get", "apk ", "gcc", "cc ", "curl", "wget"} - ({"apt-get", "gcc"} if name == "train" else set())
    assert not any(tool in run for run in runs for tool in forbidden)


def test_train_alone_has_a_c_compiler_with_the_headers_it_needs() -> None:
    text = CONTAINERFILES["train"]
    runtime = text[text.index("FROM ${BASE} AS runtime") : text.index("\nFROM runtime\n")]
    [install] = re.findall(r"apt-get install .*?&&", runtime.replace("\\\n", " "))
    packages = [word.strip("'") for word in install.split()[2:] if not word.startswith(("-", "&&"))]
    assert [package.partition("=")[0] for package in packages] == ["gcc", "libc6-dev"]
    assert all(package.partition("=")[2] for package in packages)  # pinned
    assert "rm -rf /var/lib/apt/lists/*" in runtime
    assert [name for name, text in CONTAINERFILES.items() if "gcc" in text] == ["train"]


@pytest.mark.parametrize("name", STEPS)
def test_the_last_stage_only_copies(name: str) -> None:
    text = CONTAINERFILES[name]
    last = text[text.rindex("\nFROM ") :]
    assert "\nRUN " not in last
    assert "sbom.cdx.json" in last
    assert "VOLUME /tmp" in last
    assert last.index("COPY --from=packages") < last.index("COPY --from=code")


@pytest.mark.parametrize("name", STEPS)
def test_the_sbom_is_written_where_the_packages_of_the_system_are_those_of_the_image(name: str) -> None:
    stages = [value.split() for word, value in instructions(name) if word == "FROM"]
    [packages] = [words for words in stages if words[1:] == ["AS", "packages"]]
    assert packages[0] == stages[-1][0]


HELM_PATH = "/opt/chatmetrics/bin/helm"
OFFICIAL = f"docker.io/alpine/helm@sha256:{'5' * 64}"


@pytest.mark.parametrize(
    ("image", "sha256", "error"),
    [
        (OFFICIAL, "", ""),
        (OFFICIAL, "right", ""),
        (OFFICIAL, "wrong", "which is not HELM_SHA256 (wrong)"),
        ("localhost/helm:local", "right", ""),
        ("localhost/helm:local", "wrong", "which is not HELM_SHA256 (wrong)"),
        ("localhost/helm:local", "", "which is not HELM_SHA256 (not set)"),
    ],
)
def test_helm_with_another_checksum_fails_the_build(image: str, sha256: str, error: str, tmp_path: Path) -> None:
    [check] = [value for word, value in instructions("deploy") if word == "RUN" and "sha256sum" in value]
    (tmp_path / "helm").write_bytes(b"a program")
    found = hashlib.sha256(b"a program").hexdigest()
    variables = {"HELM": image, "HELM_SHA256": found if sha256 == "right" else sha256}
    command = check.replace(HELM_PATH, str(tmp_path / "helm"))
    done = subprocess.run(["sh", "-c", command], env={**os.environ, **variables}, capture_output=True, text=True)
    expected = f"Helm in {image} has the sha256 {found}, {error}\n" if error else ""
    assert (done.returncode, done.stderr) == (int(bool(error)), expected)


@pytest.mark.parametrize("name", STEPS)
def test_image_contains_its_own_step_and_no_other(name: str) -> None:
    copied = {value.split()[0] for word, value in instructions(name) if word == "COPY" and "--from" not in value}
    folders = {path.removeprefix("components/") for path in copied if path.startswith("components/")}
    assert folders == {"*.py", "nl2sql", "storage", "inference", "base_model", name}


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("components", "images"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "images" / "digests.json").unlink(missing_ok=True)
    return tmp_path


def names(checkout: Path) -> ModuleType:
    """Import components/image.py from a checkout, as a new process would."""
    spec = importlib.util.spec_from_file_location("image_of_checkout", checkout / "components" / "image.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed_by(checkout: Path, path: str) -> set[str]:
    """Names of the images whose reference changes when a file does."""
    every = [*STEP_IMAGES, "torch", "torch-cu126"]
    before = {name: names(checkout).image(name) for name in every}
    with (checkout / path).open("a") as file:
        file.write("\n# changed\n")
    return {name for name in every if names(checkout).image(name) != before[name]}


WITH_TORCH = {"torch", "train", "merge", "convert"}


@pytest.mark.parametrize(
    ("path", "images"),
    [
        ("images/preprocess/requirements.lock", {"preprocess"}),
        ("images/evaluate/Containerfile", {"evaluate"}),
        ("images/convert/llama-cpp.lock", {"convert"}),
        ("images/train/Containerfile", {"train", "train-cu126"}),
        ("images/train-cu126/requirements.lock", {"train-cu126"}),
        ("images/torch/requirements.lock", WITH_TORCH),
        ("images/torch/Containerfile", WITH_TORCH | {"torch-cu126", "train-cu126"}),
        ("images/torch-cu126/requirements.lock", {"torch-cu126", "train-cu126"}),
        ("images/runtime.lock", set(STEP_IMAGES)),
        ("components/train/launch.py", {"train", "train-cu126"}),
        ("components/storage/store.py", set(STEP_IMAGES)),
        ("components/evaluate/templates/search.js", {"evaluate"}),
        ("components/train/README.md", set()),
        ("images/sbom.py", set(STEP_IMAGES)),
        ("images/lock.sh", set()),
        ("images/Containerfile.jinja", set()),
        ("images/evaluate/Containerfile.jinja", set()),
    ],
)
def test_changed_file_changes_the_tags_of_the_images_that_contain_it(
    checkout: Path, path: str, images: set[str]
) -> None:
    assert changed_by(checkout, path) == images


def test_installed_package_names_images_without_a_checkout(checkout: Path) -> None:
    shutil.rmtree(checkout / "images")
    assert re.fullmatch(r"chatmetrics/train:[0-9a-f]{12}", names(checkout).image("train"))


def test_recorded_reference_is_used_if_it_was_built_from_this_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "digests.json"
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(file))
    pushed = f"registry.example/a/train@sha256:{'1' * 64}"
    entries = {
        "train": {"hash": source_hash("train"), "reference": pushed, "digest": f"sha256:{'1' * 64}"},
        "merge": {"hash": "0123456789ab", "reference": "registry.example/a/merge:0123456789ab", "digest": None},
    }
    file.write_text(json.dumps(entries))
    assert image("train") == pushed
    assert image("merge") == f"chatmetrics/merge:{source_hash('merge')}"
    assert image("evaluate") == f"chatmetrics/evaluate:{source_hash('evaluate')}"


@pytest.mark.parametrize("text", ["", "[1]", '{"train": 1}', '{"train": {"hash": "x"}}'])
def test_invalid_digest_file_is_a_one_line_error(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "digests.json"
    file.write_text(text)
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(file))
    with pytest.raises(InputError, match=r"digests\.json is not a digest file"):
        image("train")


# --- Building --------------------------------------------------------------------------------------------------------

FAKE = """#!/bin/sh
printf '%s\\n' "$*" >> "$FAKE_LOG"
case "$1" in
    version) test -z "$FAKE_DOWN" ;;
    pull) test -z "$FAKE_OFFLINE" || { echo 'dial tcp: no route to host' >&2; exit 1; } ;;
    inspect) test -z "$FAKE_OFFLINE" || exit 1
             if [ "$5" = '{{.FromImageID}}' ]; then echo "${FAKE_ID:-1d}"; exit; fi
             echo "${FAKE_DIGEST:-sha256:ba5e}" ;;
    image) test -z "$FAKE_OFFLINE" || exit 1
           if [ "$4" = '{{.Id}}' ]; then echo "${FAKE_ID:-sha256:1d}"; exit; fi
           echo "registry.example/a/python@${FAKE_DIGEST:-sha256:ba5e}"
           echo "mirror.example/library/python@${FAKE_DIGEST:-sha256:ba5e}"
           echo "docker.io/library/python@${FAKE_DIGEST:-sha256:ba5e}"
           echo "${5%:*}@sha256:d0c4e4" ;;
    push) if [ "$2" = --digestfile ]; then echo sha256:d16e57 > "$3"; fi ;;
    build) echo "STEP 1: FROM"; test -z "$FAKE_BROKEN" || { echo "no matching distribution"; exit 125; } ;;
esac
"""


class Tool:
    """A fake build tool that records its arguments."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.log, self.digests = folder, folder / "log", folder / "digests.json"
        self.environment = monkeypatch.setenv
        self.environment("FAKE_LOG", str(self.log))
        (folder / "bin").mkdir()
        # Only these are on the PATH, so that no real tool is found.
        for name in ("sh", "echo", "test"):
            (folder / "bin" / name).symlink_to(shutil.which(name) or name)
        self.environment("PATH", str(folder / "bin"))

    def install(self, name: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(FAKE)
        path.chmod(0o755)

    def build(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["build", *arguments, "--digests", str(self.digests)])

    def commands(self, verb: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.split()[0] == verb]

    def reference(self, name: str) -> str:
        return str(self.recorded()[name]["reference"])

    def recorded(self) -> dict[str, dict[str, str | None]]:
        return dict(json.loads(self.digests.read_bytes()))


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tool]:
    yield Tool(tmp_path, monkeypatch)


def test_image_is_built_tagged_and_recorded(tool: Tool) -> None:
    tool.install("buildah")
    done = tool.build(
        "preprocess",
        *("--registry", "registry.example/a", "--build-arg", "PIP_INDEX_URL=https://pip.example"),
        *("--option", "--isolation chroot"),
    )
    assert done.exit_code == 0, done.output
    tag = tool.reference("preprocess")
    assert re.fullmatch(rf"registry\.example/a/preprocess:{source_hash('preprocess')}-[0-9a-f]{{12}}", tag)
    (command,) = tool.commands("build")
    assert "--layers" in command
    assert "--platform" not in command
    assert f"--tag {tag} {ROOT}" in command
    assert f"--file {IMAGES}/preprocess/Containerfile" in command
    assert "--build-arg BASE=docker.io/library/python@sha256:ba5e " in command
    assert "--build-arg BASE_NAME=docker.io/library/python:3.11-slim-bookworm" in command
    assert f"--build-arg SOURCE_HASH={source_hash('preprocess')}" in command
    assert "--build-arg PIP_INDEX_URL=https://pip.example --isolation chroot" in command
    assert "STEP 1: FROM" in done.output
    assert tool.recorded() == {"preprocess": {"hash": source_hash("preprocess"), "reference": tag, "digest": None}}
    assert tool.commands("push") == []


def test_parent_image_is_built_first_and_once(tool: Tool) -> None:
    tool.install("podman")
    assert tool.build("train", "merge", "--registry", "r").exit_code == 0
    commands = tool.commands("build")
    assert [re.findall(r"--tag r/([\w-]+):", command) for command in commands] == [["torch"], ["train"], ["merge"]]
    assert f"BASE={tool.reference('torch')} " in commands[1]
    assert "--layers" not in commands[0]


def test_variant_is_built_from_its_steps_containerfile(tool: Tool) -> None:
    tool.install("buildah")
    assert tool.build("train-cu126", "--registry", "r").exit_code == 0
    torch, train = tool.commands("build")
    assert "IMAGE=torch-cu126 " in torch
    assert f"--file {IMAGES}/torch/Containerfile" in torch
    assert "IMAGE=train-cu126 " in train
    assert f"BASE={tool.reference('torch-cu126')} " in train
    assert f"--file {IMAGES}/train/Containerfile" in train


def test_images_of_all_steps_are_built_by_default(tool: Tool) -> None:
    tool.install("buildah")
    assert tool.build().exit_code == 0
    assert set(tool.recorded()) == {*STEPS, "torch"}


@pytest.mark.parametrize(("name", "digest"), [("docker", "sha256:d0c4e4"), ("podman", "sha256:d16e57")])
def test_pushed_image_is_recorded_by_its_digest(name: str, digest: str, tool: Tool) -> None:
    tool.install(name)
    tool.digests.write_text('{"train": {"hash": "x", "reference": "r/train:x", "digest": null}}')
    assert tool.build("preprocess", "--registry", "host:5000/a", "--push").exit_code == 0
    assert tool.recorded()["preprocess"]["reference"] == f"host:5000/a/preprocess@{digest}"
    assert tool.recorded()["preprocess"]["digest"] == digest
    assert tool.recorded()["train"]["hash"] == "x"


def test_pushed_image_is_labeled_with_the_digest_of_its_parent(tool: Tool) -> None:
    tool.install("podman")
    assert tool.build("merge", "--registry", "r", "--push").exit_code == 0
    torch, merge = tool.commands("build")
    [tag] = re.findall(r"--tag (r/torch:\S+)", torch)
    assert f"BASE={tag} " in merge
    assert f"BASE_NAME={tag} --build-arg BASE_DIGEST=sha256:d16e57" in merge


def test_base_from_a_mirror_is_pinned_by_its_digest(tool: Tool) -> None:
    tool.install("docker")
    assert tool.build("preprocess", "--base", "registry.example/a/python:3.11").exit_code == 0
    assert "BASE=registry.example/a/python@sha256:ba5e " in tool.commands("build")[0]


def test_local_base_is_not_pinned_and_this_is_noted(tool: Tool) -> None:
    tool.install("buildah")
    done = tool.build("preprocess", "--base", "localhost/python:3.11")
    assert "note: localhost/python:3.11 is a local image, so it is not pinned by a digest, and the tags" in done.output
    assert "BASE=localhost/python:3.11 " in tool.commands("build")[0]
    assert tool.commands("pull") == []


def tags(tool: Tool, *arguments: str) -> dict[str, str]:
    """The tags of deploy and merge, without registry and name, when they are built with more arguments."""
    before = len(tool.commands("build"))
    done = tool.build("deploy", "merge", *arguments)
    assert done.exit_code == 0, done.output + str(done.exception)
    found = dict(re.findall(r"--tag \S+/([\w-]+):(\S+)", "\n".join(tool.commands("build")[before:])))
    return {name: found[name] for name in ("deploy", "merge")}


[HELM_DIGEST] = re.findall(r"ARG HELM=\S+@(sha256:[0-9a-f]{64})", CONTAINERFILES["deploy"])
OTHER_BASE = f"registry.example/a/python@sha256:{'2' * 64}"


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_an_image_on_a_patched_base_has_another_tag(name: str, tool: Tool) -> None:
    tool.install(name)
    before = tags(tool)
    assert tags(tool) == before
    tool.environment("FAKE_DIGEST", "sha256:9a7c4ed")
    patched = tags(tool)
    assert all(patched[image] != before[image] for image in before)
    assert [tag.partition("-")[0] for tag in patched.values()] == [source_hash("deploy"), source_hash("merge")]
    assert tags(tool, "--base", OTHER_BASE) not in (before, patched)


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_the_id_of_a_local_base_is_part_of_the_tag(name: str, tool: Tool) -> None:
    tool.install(name)
    tool.environment("FAKE_ID", "sha256:0001")
    before = tags(tool, "--base", "localhost/python:3.11")
    assert tags(tool, "--base", "localhost/copy:1") == before
    tool.environment("FAKE_ID", "sha256:0002")
    assert not set(tags(tool, "--base", "localhost/python:3.11").values()) & set(before.values())


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (("--registry", "other.example"), set()),
        (("--base", "mirror.example/library/python:3.11-slim-bookworm"), set()),
        (("--build-arg", "PIP_INDEX_URL=https://pip.example", "--build-arg", "PIP_CERT=/ca"), set()),
        (("--build-arg", "https_proxy=http://proxy.example"), set()),
        (("--option", "-v /etc/ssl/certs:/etc/ssl/certs:ro"), set()),
        (("--push",), set()),
        (("--build-arg", "HELM_PROGRAM=/usr/local/bin/helm"), {"deploy"}),
        (("--build-arg", f"HELM=helm.example/helm@sha256:{'3' * 64}"), {"deploy"}),
        (("--build-arg", f"HELM=mirror.example/helm@{HELM_DIGEST}"), set()),
        (("--build-arg", f"HELM_SHA256={'4' * 64}"), {"deploy"}),
        (("--platform", "linux/riscv64"), {"deploy", "merge"}),
    ],
)
def test_only_what_changes_an_image_changes_its_tag(arguments: tuple[str, ...], changed: set[str], tool: Tool) -> None:
    tool.install("podman")
    before, after = tags(tool), tags(tool, *arguments)
    assert {name for name in before if before[name] != after[name]} == changed


def test_the_platform_is_that_of_the_base_too(tool: Tool) -> None:
    tool.install("docker")
    tags(tool, "--platform", "linux/arm64")
    assert all("--platform linux/arm64" in command for verb in ("pull", "build") for command in tool.commands(verb))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--build-arg", "BASE=localhost/python:3.11"), "BASE: is set by the build; use --base"),
        (("--build-arg", "SOURCE_HASH=0"), "SOURCE_HASH: is set by the build"),
        (("--build-arg", "HELM"), "HELM: has no value; write KEY=VALUE"),
        (("--option", "--platform=linux/arm64"), "use --platform"),
        (("--option", "--build-arg HELM=x"), "use --platform, --build-arg or --base"),
    ],
)
def test_arguments_that_the_tag_would_not_know_are_refused(
    arguments: tuple[str, ...], message: str, tool: Tool
) -> None:
    tool.install("buildah")
    assert message in str(failing(tool, "deploy", *arguments))
    assert tool.commands("build") == []


def failing(tool: Tool, *arguments: str) -> ServiceError | InputError:
    done = tool.build(*arguments)
    assert isinstance(done.exception, ServiceError | InputError)
    assert "\n" not in str(done.exception)
    return done.exception


def test_failed_build_is_a_one_line_error_with_the_tools_last_lines(tool: Tool) -> None:
    tool.install("buildah")
    tool.environment("FAKE_BROKEN", "1")
    error = failing(tool, "preprocess")
    assert "preprocess: buildah could not build it: STEP 1: FROM | no matching distribution" in str(error)
    assert not tool.digests.exists()


def test_unavailable_base_is_a_one_line_error(tool: Tool) -> None:
    tool.install("buildah")
    tool.environment("FAKE_OFFLINE", "1")
    error = failing(tool, "preprocess")
    assert "cannot be pulled (dial tcp: no route to host): name a mirror's image with --base" in str(error)


def test_tool_that_does_not_work_is_skipped(tool: Tool) -> None:
    (tool.folder / "bin" / "docker").symlink_to("/bin/false")
    assert "`docker version` fails" in str(failing(tool, "preprocess"))
    tool.install("buildah")
    assert tool.build("preprocess").exit_code == 0


def test_missing_tool_is_a_one_line_error(tool: Tool) -> None:
    assert "no docker, podman or buildah on the PATH" in str(failing(tool, "preprocess"))


def test_unknown_step_is_a_one_line_error_with_the_closest_name(tool: Tool) -> None:
    tool.install("buildah")
    assert "image 'preproces' does not exist; did you mean preprocess?" in str(failing(tool, "preproces"))


def test_built_images_are_listed(tool: Tool) -> None:
    tool.install("buildah")
    tool.build("preprocess", "--registry", "r", "--push")
    listed = CliRunner().invoke(app, ["list", "--digests", str(tool.digests)]).output
    assert re.search(r"preprocess +r/preprocess@sha256:d16e57 +sha256:d16e57", listed)
    assert re.search(rf"merge +not built from this source \({source_hash('merge')}\)", listed)


# --- A real image ----------------------------------------------------------------------------------------------------

BASE = os.environ.get("CHATMETRICS_IMAGE_BASE", "")
INSIDE = """
def work() -> str:
    import os
    import chatmetrics.components.preprocess.preprocess
    import chatmetrics.components.storage.store
    from chatmetrics.components.image import image
    assert image("preprocess")
    return f"{os.getuid()} {os.access('/opt/chatmetrics', os.W_OK)}"
"""
EXECUTOR_INPUT = {"inputs": {}, "outputs": {"outputFile": "/tmp/executor.json"}}


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Build the image preprocess, and return a function that runs a shell command in it as the image's user."""
    if not BASE or not shutil.which("buildah"):
        pytest.skip("needs buildah and CHATMETRICS_IMAGE_BASE, an image with Python 3.11 and pip to build on")
    arguments = ["build", "preprocess", "--tool", "buildah", "--registry", "localhost/chatmetrics-test", "--base", BASE]
    arguments += [*shlex.split(os.environ.get("CHATMETRICS_IMAGE_OPTIONS", "")), "--digests", str(tmp_path / "digests")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output[-2000:] + str(done.exception)
    reference = json.loads((tmp_path / "digests").read_bytes())["preprocess"]["reference"]

    def buildah(*words: str) -> str:
        return subprocess.run(["buildah", *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    container = buildah("from", reference)
    try:
        yield lambda command: buildah("run", "--isolation", "chroot", container, "--", "sh", "-ec", command)
    finally:
        buildah("rm", container)
        buildah("rmi", reference)


@pytest.mark.slow
def test_real_image_runs_a_step_as_kfp_does(inside: Callable[[str], str]) -> None:
    command = f"""
        printf %s {shlex.quote(INSIDE)} > /tmp/component.py
        _KFP_RUNTIME=true python3 -m kfp.dsl.executor_main --component_module_path /tmp/component.py \\
            --function_to_execute work --executor_input {shlex.quote(json.dumps(EXECUTOR_INPUT))} >&2
        cat /tmp/executor.json
    """
    assert json.loads(inside(command)) == {"parameterValues": {"Output": "65532 False"}}
    present = json.loads(inside("python3 -m pip list --format json --path /opt/chatmetrics/site-packages"))
    listed = json.loads(inside("cat /opt/chatmetrics/sbom.cdx.json"))
    assert listed["bomFormat"] == "CycloneDX"
    purls = [part.get("purl", "") for part in listed["components"]]
    packages = {(canonicalize_name(part["name"]), part["version"]) for part in listed["components"]}
    assert packages >= {(canonicalize_name(part["name"]), part["version"]) for part in present}
    assert len([purl for purl in purls if purl.startswith("pkg:deb/")]) == len(inside("dpkg-query -W").splitlines())
    assert inside("for tool in gcc cc make; do command -v $tool || true; done") == ""
