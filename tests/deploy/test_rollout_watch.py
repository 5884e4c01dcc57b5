"""Which faults end a deployment at once. tests/e2e/test_deploy_step.py tests how they are found in pods."""

import pytest

from chatmetrics.components.deploy.rollout_watch import Fault
from chatmetrics.components.errors import GateError, ServiceError


def test_a_failed_acceptance_test_ends_a_deployment_at_once() -> None:
    verdict = Fault("pod", "proxy", "1 of 4 right", ended=4).verdict
    assert isinstance(verdict, GateError)
    assert str(verdict) == "1 of 4 right"


@pytest.mark.parametrize("status", [3, 6])
def test_an_unusable_model_file_ends_a_deployment_after_two_restarts(status: int) -> None:
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
def test_a_fault_that_may_disappear_does_not_end_a_deployment(fault: Fault) -> None:
    assert fault.verdict is None
