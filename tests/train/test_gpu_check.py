"""`make gpu-check`: what it does without a GPU, and its checks on a CPU with tiny models."""

import json
import os
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.settings import TrainSettings
from tests.gpu_check import bundle, packages, report, run
from tests.gpu_check.place import Place

ROOT = Path(__file__).parents[2]
NAMES = [check.name for check in run.CHECKS]


def gpu_check(*arguments: str, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [python, str(ROOT / "tests" / "gpu_check"), "--wheels", "none", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = gpu_check("--output", str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr
    assert "this machine has no GPU; nothing was checked" in done.stdout
    assert not (tmp_path / "report").exists()


def test_a_python_without_packages_is_told_which_are_missing(tmp_path: Path) -> None:
    python = sys._base_executable  # type: ignore[attr-defined]
    if not subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode:
        pytest.skip("the Python that the environment was made with has torch itself")
    done = gpu_check("--device", "cpu", "--output", str(tmp_path), python=python, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert "gpu-check: torch >=2.6: none, missing" in done.stdout
    checks = json.loads((tmp_path / "gpu-check.json").read_bytes())["checks"]
    assert {check["status"] for check in checks} == {"skipped"}
    assert checks[0]["reason"] == "torch not installed"


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The report of all checks on a CPU, and its Markdown."""
    folder = tmp_path_factory.mktemp("report")
    done = gpu_check("--device", "cpu", "--tiny", "--one-process", "--output", str(folder))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "gpu-check.json").read_bytes()), (folder / "gpu-check.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_check_passes_on_a_cpu_with_tiny_models(name: str, on_cpu: tuple[dict[str, Any], str]) -> None:
    facts, text = on_cpu
    [check] = [check for check in facts["checks"] if check["check"] == name]
    if name == "two_processes":
        assert check["status"] == "skipped"
        assert check["reason"].startswith("needs 2 GPUs")
    else:
        assert check["status"] == "passed", check
        assert check["found"]
    assert f"| {name} | {check['status']} | " in text


@pytest.mark.exhaustive
def test_speed_is_measured_with_the_published_and_the_recommended_settings(
    on_cpu: tuple[dict[str, Any], str],
) -> None:
    found = {check["check"]: check["found"] for check in on_cpu[0]["checks"]}
    published, recommended = found["speed_7b_published"], found["speed_7b_recommended"]
    assert published["batch"] == recommended["batch"] == "2 x 8"
    assert published["computed_tokens_per_second"] >= published["tokens_per_second"]  # padding
    assert recommended["computed_tokens_per_second"] < 0.8 * recommended["tokens_per_second"]  # shared prompts
    assert published["estimated_gib"] > 0


@pytest.mark.parametrize(
    ("size", "gib", "changes"),
    [
        ("7B", 80, {}),
        ("7B", 24, {"gradient_checkpointing": True}),
        ("7B", 17.5, {"batch_size": 1, "gradient_accumulation": 16, "gradient_checkpointing": True}),
        ("0.5B", 24, {}),
        ("7B", 8, None),
    ],
)
def test_settings_are_changed_only_as_far_as_a_gpu_requires(
    size: str, gib: float, changes: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.gpu_check.checks import DoesNotFit
    from tests.gpu_check.training import CONFIGS, fitted

    properties = SimpleNamespace(total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    published, sizes = TrainSettings(packing=False), Sizes.of(CONFIGS[size])
    place = Place("cuda", False, ROOT)
    if changes is None:
        with pytest.raises(DoesNotFit, match=r"needs \d+\.\d GiB, this GPU has 8\.0"):
            fitted(published, sizes, place)
    else:
        assert fitted(published, sizes, place) == published.model_copy(update=changes)


def write_package(folder: Path, name: str, version: str, code: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )


@pytest.mark.exhaustive
def test_checks_that_need_only_torch_run_although_others_fail(tmp_path: Path) -> None:
    """With a transformers that is too old: it cannot be imported or, in one check, ends the process."""
    code = "import os, sys\nif 'fp16' in sys.argv: os._exit(7)\nraise ImportError('no module named x')"
    write_package(tmp_path / "old", "transformers", "4.0.0", code)
    old = os.pathsep.join([str(tmp_path / "old"), os.environ.get("PYTHONPATH", "")])
    names = ("flex_kernel", "flex_model", "fp16")
    done = gpu_check("--device", "cpu", "--tiny", "--output", str(tmp_path), *names, PYTHONPATH=old)
    assert done.returncode == 1
    assert "gpu-check: transformers <6,>=5.20: 4.0.0, older than needed" in done.stdout
    checks = json.loads((tmp_path / "gpu-check.json").read_bytes())["checks"]
    assert [(check["status"], check["reason"]) for check in checks] == [
        ("passed", ""),
        ("failed", "ImportError: no module named x"),
        ("failed", "the process ended with exit status 7; its output says why"),
    ]


def test_a_check_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    write_package(tmp_path / "slow", "torch", "2.6.0", "import time; time.sleep(1000)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "slow"), str(ROOT)])}
    options = Namespace(work=tmp_path, device="cpu", tiny=True)
    assert run.wait_for_checks(["flex_kernel"], options, environment, 0.5) == "it took longer than 0 s"


@pytest.mark.parametrize(
    ("check", "missing", "gpus", "left", "reason"),
    [
        ("fp16", "", 1, 100, ""),
        ("fp16", "", 1, 5, "no time left"),
        ("fp16", "peft", 1, 100, "peft not installed"),
        ("fp16", "bitsandbytes", 1, 100, ""),
        ("nf4", "bitsandbytes", 1, 100, "bitsandbytes not installed (optional)"),
        ("flex_kernel", "transformers", 1, 100, ""),
        ("two_processes", "", 1, 100, "needs 2 GPUs, this machine has 1"),
        ("two_processes", "", 4, 100, ""),
    ],
)
def test_what_cannot_run_here_is_skipped_with_the_reason(
    check: str, missing: str, gpus: int, left: float, reason: str
) -> None:
    [chosen] = [item for item in run.CHECKS if item.name == check]
    lacking = [packages.Package(missing, "", "", "missing")]
    assert run.why_skipped(chosen, lacking, {"gpus": gpus}, left) == reason


def test_unknown_checks_are_refused() -> None:
    done = gpu_check("flex")
    assert done.returncode == 2
    assert "there is no check flex" in done.stderr


# --- Packages and the bundle -----------------------------------------------------------------------------------------


def write_wheel(folder: Path, name: str, requires: tuple[str, ...] = ()) -> None:
    distribution, version = name.split("-")[:2]
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    with zipfile.ZipFile(folder / f"{name}.whl", "w") as wheel:
        wheel.writestr(f"{distribution}/__init__.py", f"version = '{version}'")
        wheel.writestr(f"{distribution}-{version}.dist-info/METADATA", "\n".join(lines))


def test_the_bundle_adds_what_is_missing_or_old_and_what_that_requires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"torch": "2.11.0+cu130", "transformers": "5.17.0", "tokenizers": "0.22.0", "peft": "0.20.1"}
    monkeypatch.setattr(packages, "installed_version", lambda name: installed.get(name, ""))
    write_wheel(tmp_path, "transformers-5.23.0-py3-none-any", ("tokenizers>=0.23", "typer; extra == 'cli'", "hub>=2"))
    write_wheel(tmp_path, "tokenizers-0.23.3-py3-none-any")
    write_wheel(tmp_path, "peft-0.21.0-py3-none-any")  # the installed one is new enough
    write_wheel(tmp_path, "accelerate-1.16.0-cp27-cp27m-win32")  # for another machine
    write_wheel(tmp_path, "pydantic-2.14.3-py3-none-any")
    found = packages.Bundle(tmp_path)
    surveyed = {package.name: (package.found, package.source) for package in packages.survey(found)}
    assert surveyed == {
        "pydantic": ("2.14.3", "bundle"),
        "torch": ("2.11.0+cu130", "installed"),
        "transformers": ("5.23.0", "bundle"),
        "peft": ("0.20.1", "installed"),
        "accelerate": ("", "missing"),
        "bitsandbytes": ("", "missing"),
        "datasets": ("", "missing"),
        "matplotlib": ("", "missing"),
        "sqlglot": ("", "missing"),
    }
    assert set(found.chosen) == {"pydantic", "transformers", "tokenizers"}
    assert found.lacking == ["hub>=2"]
    found.unpack(tmp_path / "site")
    assert (tmp_path / "site" / "tokenizers" / "__init__.py").read_text() == "version = '0.23.3'"


def test_what_the_bundle_packs_is_in_the_lock_of_the_train_image() -> None:
    torch_and_its = bundle.closure({"torch"}, "3.12")
    wanted = {requirement.name for requirement in packages.required()} - {"bitsandbytes"}
    names = bundle.closure(wanted, "3.12", torch_and_its)
    assert {"transformers", "tokenizers", "pydantic-core", "safetensors"} <= names
    assert not {"torch", "sympy", "triton", "bitsandbytes"} & names
    locked = [entry.partition("==")[0] for entry in bundle.lock_entries(names)]
    assert set(locked) == names
    assert "pillow" not in bundle.closure(wanted, "3.12", {*torch_and_its, "matplotlib"})


def test_the_modules_that_training_imports_are_surveyed() -> None:
    """A package that only training imports, and that is in no list here, would not be reported as missing."""
    program = (
        "import sys; import chatmetrics.components.train.fine_tune; print(*{n.split('.')[0] for n in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    extra = {
        requirement.name
        for requirement in map(Requirement, bundle.requires("chatmetrics") or [])
        if requirement.marker and requirement.marker.evaluate({"extra": "train"})
    }
    needed = {name for name in extra if name in imported}
    assert needed <= {requirement.name for requirement in packages.required()} | {"boto3"}


def test_the_report_is_one_table_of_checks() -> None:
    check = {"check": "fp16", "status": "failed", "reason": "a|b", "seconds": 2.2, "found": {"first_loss": 6.25}}
    package = {"name": "torch", "needed": ">=2.6", "found": "", "source": "missing"}
    facts = {"device": {"name": "NVIDIA H200"}, "time": "now", "commit": "abc", "seconds": 3.0}
    text = report.markdown({**facts, "checks": [check], "packages": [package]})
    assert "NVIDIA H200, now, commit abc, 3 s" in text
    assert "| fp16 | failed | 2 | a\\|b; first loss 6.25 |" in text
    assert "| torch | >=2.6 | - | missing |" in text
