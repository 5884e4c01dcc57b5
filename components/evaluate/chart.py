"""Pictures for the report: they travel inside it."""

import base64
import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from chatmetrics.components.evaluate.report import Report

COLOURS = {"student": "#2563eb", "base": "#94a3b8"}
BAR_WIDTH = 0.38


def scenario_chart(report: Report) -> str:
    """Bars of the accuracy by scenario with their intervals, base beside student, as an SVG data URI."""
    scenarios = list(report.models["student"].by_scenario)
    positions = np.arange(len(scenarios), dtype=float)
    # Text stays text: the reader's own fonts draw it, Chinese too. A fixed salt makes the file reproducible.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "chatmetrics", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        axes = figure.subplots()
        for index, (model, score) in enumerate(report.models.items()):
            groups = [score.by_scenario[scenario] for scenario in scenarios]
            heights = np.array([100 * group.accuracy for group in groups])
            bounds = 100 * np.array([group.interval for group in groups]).reshape(-1, 2).T
            axes.bar(
                positions + index * BAR_WIDTH,
                heights,
                BAR_WIDTH,
                yerr=np.abs(bounds - heights),
                label=model,
                color=COLOURS[model],
                error_kw={"ecolor": "#475569", "elinewidth": 1, "capsize": 3},
            )
        axes.set_xticks(positions + BAR_WIDTH * (len(report.models) - 1) / 2, scenarios)
        axes.set_ylabel("execution accuracy, %")
        axes.set_ylim(0, 105)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=len(report.models))
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", picture.getvalue())


def embedded_png(path: Path) -> str:
    """A PNG file as a data URI."""
    return _data_uri("image/png", path.read_bytes())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
