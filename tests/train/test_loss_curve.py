import json
from pathlib import Path

import pytest

from chatmetrics.components.train.watch.loss_curve import LossPoint, smooth, write_loss_curve


def test_smoothing_equals_that_of_llama_factory() -> None:
    # By hand: its weight for three values is 1.8 * (sigmoid(0.05 * 3) - 0.5) = 0.06737.
    assert smooth([4.0, 2.0, 3.0]) == pytest.approx([4.0, 2.13474, 2.94170], abs=1e-4)
    assert smooth([]) == []


def test_longer_curves_are_smoothed_more() -> None:
    noisy = [1.0, 3.0] * 100
    late = smooth(noisy)[-20:]
    assert max(late) - min(late) < 0.3


def test_the_curve_is_written_as_json_and_as_an_image(tmp_path: Path) -> None:
    write_loss_curve([LossPoint(step=1, loss=3.0), LossPoint(step=5, loss=2.0)], tmp_path)
    curve = json.loads((tmp_path / "loss.json").read_bytes())
    assert (curve["step"], curve["loss"]) == ([1, 5], [3.0, 2.0])
    assert len(curve["smoothed"]) == 2
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
