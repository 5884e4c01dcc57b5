from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from chatmetrics.components.train import launch
from tests.train.simulated_pods import ForkServer, forked_launch, running_fork_server


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """With so small a model several threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    with running_fork_server() as server:
        yield server


@pytest.fixture
def quick_launch(fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training processes are forked instead of started by `accelerate launch`, which takes ten seconds."""
    monkeypatch.setattr(launch, "subprocess", replaced_subprocess(fork_server))


@pytest.fixture(scope="module")
def quick_launches(fork_server: ForkServer) -> Iterator[None]:
    """The same for all tests of a module, and its fixtures."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(launch, "subprocess", replaced_subprocess(fork_server))
        yield


def replaced_subprocess(server: ForkServer) -> SimpleNamespace:
    return SimpleNamespace(Popen=forked_launch(server), PIPE=launch.subprocess.PIPE)
