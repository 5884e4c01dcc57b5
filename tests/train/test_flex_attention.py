"""FlexAttention on a CPU, as far as torch allows it: its arithmetic, and what happens where it cannot be compiled.

What a GPU compiles is compared with SDPA by `make gpu-check`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex_attention

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.data.trees import tree_pack
from chatmetrics.components.train.model import device
from chatmetrics.components.train.model.answer_loss import tree_mask
from chatmetrics.components.train.settings import TrainSettings
from tests.ports import free_port
from tests.train.test_trees import random_examples

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture
def differentiable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses FlexAttention's backward pass on a CPU, although its uncompiled form works there."""
    monkeypatch.setattr(torch_flex_attention, "_validate_device", lambda *_: None)


@pytest.fixture
def gpu(differentiable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have a GPU; what is computed on it is computed on the CPU."""
    monkeypatch.setattr(device, "_capability", lambda: 9.0)


@pytest.fixture
def compiled_again() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("differentiable")
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (7, 1), (2, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_outputs_and_gradients_on_a_tree_equal_those_of_sdpa(heads: int, key_heads: int, seed: int) -> None:
    torch.manual_seed(seed)
    ends = tree_pack(random_examples(seed))["ends"]
    length = ends.shape[1]
    inputs = [torch.randn(1, count, length, 16, requires_grad=True) for count in (heads, key_heads, key_heads)]
    flex = torch_flex_attention.flex_attention(
        *inputs, block_mask=tree_mask(ends, "flex_attention", torch.float32), enable_gqa=True
    )
    dense = tree_mask(ends, "sdpa", torch.float32)
    sdpa = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=dense, enable_gqa=True)
    torch.testing.assert_close(flex, sdpa, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(sdpa)
    for ours, theirs in zip(*(torch.autograd.grad(output, inputs, direction) for output in (flex, sdpa)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def no_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "cache"))


@pytest.mark.usefixtures("gpu", "compiled_again")
def test_without_a_compiler_auto_falls_back_to_sdpa_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_compiler(tmp_path, monkeypatch)
    assert device.attention_implementation(TrainSettings()) == "sdpa"
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: FlexAttention cannot be compiled here, and SDPA takes its place: ")
    assert "compiler" in line


@pytest.mark.usefixtures("gpu", "compiled_again")
def test_flex_attention_by_name_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiler(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"flex_attention is not available on this machine \(.*compiler.*; set it to"):
        device.attention_implementation(TrainSettings(attention="flex_attention"))


def test_triton_reports_the_missing_compiler_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a pod without gcc, from Triton itself, and what becomes of it."""
    build = pytest.importorskip("triton.runtime.build")
    build._find_compiler.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError) as caught:
        build._find_compiler("c")
    outer = torch._dynamo.exc.TorchDynamoException("backend='inductor' raised:\nsomething long")
    outer.__cause__ = caught.value
    assert device._innermost(outer).startswith("RuntimeError: Failed to find C compiler.")
    build._find_compiler.cache_clear()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("capability", "settings", "expected"),
    [
        (9.0, {}, "flex_attention"),
        (8.0, {"attention": "flex_attention"}, "flex_attention"),
        (7.0, {}, "sdpa"),
        (9.0, {"packing": False}, "sdpa"),
        (9.0, {"attention": "sdpa"}, "sdpa"),
    ],
)
def test_where_it_compiles_it_is_used_for_packs(
    capability: float,
    settings: dict[str, Any],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(device, "_capability", lambda: capability)
    # Compiled as on a GPU, but by the backend that runs the operations as they are.
    monkeypatch.setattr(device, "flex_attention_forward", eager_forward)
    assert device.attention_implementation(TrainSettings.model_validate(settings)) == expected
    assert capsys.readouterr().err == ""


def eager_forward(_: object, *inputs: torch.Tensor) -> tuple[torch.Tensor, None]:
    *tensors, mask = inputs
    compiled = torch.compile(torch_flex_attention.flex_attention, backend="eager")
    return compiled(*tensors, block_mask=mask, enable_gqa=True), None


@pytest.mark.usefixtures("gpu")
def test_gradients_that_are_not_finite_are_a_reason_not_to_use_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object, *inputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return sum(tensor.sum() for tensor in inputs[:3]) * torch.nan, None

    monkeypatch.setattr(device, "flex_attention_forward", broken)
    assert device.attention_implementation(TrainSettings()) == "sdpa"
    assert "its gradients are not finite" in capsys.readouterr().err


ONE_OF_TWO = """
from accelerate import PartialState
from chatmetrics.components.train.model import device
from chatmetrics.components.train.settings import TrainSettings
rank = PartialState(cpu=True).process_index
device._capability = lambda: 9.0
for failing in range(3):
    device.flex_failure = lambda *_: f"no compiler on node {failing}" if rank == failing else ""
    print(device.attention_implementation(TrainSettings()))
"""


def test_all_processes_use_sdpa_if_one_cannot_compile() -> None:
    """With the first, the second and then none of two processes failing."""
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{**environment, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    command, pipe = [sys.executable, "-c", ONE_OF_TWO], subprocess.PIPE
    processes = [subprocess.Popen(command, env=rank, stdout=pipe, stderr=pipe, text=True) for rank in ranks]
    for number, process in enumerate(processes):
        stdout, stderr = process.communicate(timeout=300)
        assert stdout.split() == ["sdpa", "sdpa", "flex_attention"], stderr
        assert [f"no compiler on node {node}" in stderr for node in range(2)] == [number == 0, number == 1]
