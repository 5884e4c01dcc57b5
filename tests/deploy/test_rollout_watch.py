"""Which faults no waiting can mend. How they are found in pods is in tests/e2e/test_deploy_step.py."""

import pytest

from chatmetrics.components.deploy.rollout_watch import Fault
from chatmetrics.components.errors import GateError, ServiceError


def test_a_failed_acceptance_test_ends_a_deployment_at_once() -> None:
    verdict = Fault("pod", "proxy", "1 of 4 right", ended=4).verdict
    assert isinstance(verdict, GateError)
    assert str(verdict) == "1 of 4 right"


@pytest.mark.parametrize("status", [3, 6])
def test_a_file_that_cannot_be_used_ends_it_when_it_was_fetched_again_in_vain(status: int) -> None:
    assert Fault("pod", "fetch", "damaged", ended=status, restarts=1).verdict is None
    assert isinstance(Fault("pod", "fetch", "damaged", ended=status, restarts=2).verdict, ServiceError)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("pod", "proxy", "Ollama does not answer yet", ended=5, restarts=9),
        Fault("pod", "fetch", "killed", ended=137, restarts=9),
        Fault("pod", "ollama", "exit status 4", ended=4, restarts=9),
        Fault("pod", "smoke test", "no answer", ended=4),
        Fault("pod", "", "no node takes the pod"),
    ],
)
def test_what_may_pass_is_waited_for(fault: Fault) -> None:
    assert fault.verdict is None
