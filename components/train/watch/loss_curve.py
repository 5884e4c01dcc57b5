"""Writes the loss curve, raw and smoothed, as an image and as JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from matplotlib.figure import Figure


class LossPoint(TypedDict):
    """A point of the curve: the mean loss since the previous point."""

    step: int
    loss: float


class DevPoint(TypedDict):
    """A measurement on dev questions: their loss or accuracy after a step."""

    step: int
    value: float


def write_loss_curve(
    points: Sequence[LossPoint], folder: Path, dev_measure: str = "", dev_points: Sequence[DevPoint] = ()
) -> None:
    """Write loss.json and loss.png.

    Args:
        points: the curve; loss.json has it as three lists of equal length: step, loss and smoothed.
        folder: the folder to write to.
        dev_measure: what was measured on dev questions, loss or accuracy; empty if nothing was.
        dev_points: the measurements; loss.json has them under `dev`.
    """
    steps, losses = [point["step"] for point in points], [point["loss"] for point in points]
    smoothed = smooth(losses)
    curve: dict[str, Any] = {"step": steps, "loss": losses, "smoothed": smoothed}
    dev_steps, dev_values = [point["step"] for point in dev_points], [point["value"] for point in dev_points]
    if dev_points:
        curve["dev"] = {"measure": dev_measure, "step": dev_steps, "value": dev_values}
    (folder / "loss.json").write_text(json.dumps(curve), encoding="utf-8")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = axes.plot(steps, losses, color="tab:blue", alpha=0.35, label="loss")
    lines += axes.plot(steps, smoothed, color="tab:blue", label="smoothed")
    if dev_points:
        dev_axes = axes if dev_measure == "loss" else axes.twinx()
        lines += dev_axes.plot(dev_steps, dev_values, "o-", color="tab:orange", label=f"dev {dev_measure}")
        if dev_measure != "loss":
            dev_axes.set(ylabel=f"dev {dev_measure}", ylim=(0, 1))
    axes.set(xlabel="step", ylabel="loss", title="Training loss")
    axes.grid(alpha=0.3)
    # Outside of the axes, because dev accuracy rises into every corner of them.
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    figure.savefig(folder / "loss.png", dpi=120)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average whose weight grows with the number of values, as in LLaMA-Factory's plot_loss."""
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    smoothed: list[float] = []
    for value in values:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value if smoothed else value)
    return smoothed
