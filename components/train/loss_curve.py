"""The loss curve, raw and smoothed, for people and for machines."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from matplotlib.figure import Figure


class Point(TypedDict):
    """A point of the curve: the mean loss since the point before."""

    step: int
    loss: float


def write_loss_curve(points: Sequence[Point], folder: Path) -> None:
    """Write loss.json (step, loss and smoothed, three lists of one length) and loss.png."""
    steps, losses = [point["step"] for point in points], [point["loss"] for point in points]
    smoothed = smooth(losses)
    curve = {"step": steps, "loss": losses, "smoothed": smoothed}
    (folder / "loss.json").write_text(json.dumps(curve), encoding="utf-8")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, label="loss")
    axes.plot(steps, smoothed, color="tab:blue", label="smoothed")
    axes.set(xlabel="step", ylabel="loss", title="Training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average with a weight that grows with the number of values, as LLaMA-Factory's plot_loss."""
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    smoothed: list[float] = []
    for value in values:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value if smoothed else value)
    return smoothed
