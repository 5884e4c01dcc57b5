"""The clients of docs/clients.md themselves, against a pod on this machine."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.programs import CAN_INSTALL, install
from tests.clients.record import SOURCE, record
from tests.clients.uses import Recording, client_pod, read_recordings
from tests.serve.pods import needs_ollama


def by_use(recordings: Iterable[Recording]) -> dict[tuple[str, str], Any]:
    return {(one.client, one.use): (one.version, one.error, one.requests) for one in recordings}


@pytest.mark.slow
@pytest.mark.exhaustive  # for `make test`; `make e2e` runs it
@pytest.mark.without_cluster
@pytest.mark.skipif(not CAN_INSTALL, reason="npm, Node.js and Go are needed")
@needs_ollama
def test_installed_clients_send_and_get_what_is_recorded(tmp_path: Path) -> None:
    install()
    pod = client_pod(tmp_path)
    with pod.ready():
        found = by_use(record(pod))
    expected = by_use(recording for recording in read_recordings() if recording.source == SOURCE)
    assert found.keys() == expected.keys(), "run `make clients`"
    for use, outcome in found.items():
        assert outcome == expected[use], f"{use}: run `make clients`"
