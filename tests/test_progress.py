import pytest

from chatmetrics.components import progress
from chatmetrics.components.progress import Progress


def test_what_was_done_at_another_time_says_nothing_of_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    Progress("training", 1000, "steps", begun=900).update(920, "loss 0.5")
    assert capsys.readouterr().err == "training: 920/1000 steps, 2.0/s, 40 s left, loss 0.5\n"
