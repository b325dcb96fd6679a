"""Draw idea.svg, the diagram of the whole idea: trajectory, information plane, choice, student.

python docs/images/idea.py

The curves are a schematic, not measurements.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from checkpointkd.reports.plot import COLORS, METADATA, STYLE

OUT = Path(__file__).with_suffix(".svg")
BLUE, ORANGE, GREEN, GRAY = COLORS[:4]
EPOCHS = np.arange(1, 9) / 8  # of eight checkpoints, as shares of the training
CHOSEN = 3


def accuracy(share: np.ndarray) -> np.ndarray:
    return 1 - np.exp(-3 * share)


def image_information(share: np.ndarray) -> np.ndarray:
    """Rise early and fall late, as the paper observes."""
    return 0.55 + 1.6 * share * np.exp(-2.6 * share) - 0.42 * share


def draw() -> bytes:
    """Return the diagram as SVG."""
    with matplotlib.rc_context(STYLE | {"font.size": 11, "axes.grid": False, "svg.hashsalt": "idea"}):
        canvas = Figure(figsize=(7.2, 6.0), facecolor="white")
        axes = canvas.subplots(2, 2, gridspec_kw={"hspace": 0.62, "wspace": 0.42}).ravel()
        canvas.subplots_adjust(left=0.08, right=0.97, top=0.91, bottom=0.07)
        _trajectory(axes[0])
        _plane(axes[1])
        _choice(axes[2])
        _student(axes[3])
        for number, (panel, title, command) in enumerate(
            zip(
                axes,
                ("Keep checkpoints", "Score them", "Choose how to teach", "Distill the student"),
                ("train, or inspect your own", "score", "select --student", "distill"),
                strict=True,
            ),
            start=1,
        ):
            panel.set_title(f"{number}. {title}", loc="left", fontweight="bold", pad=22)
            panel.text(0, 1.05, command, transform=panel.transAxes, family="monospace", color=GRAY, fontsize=9.5)
        for start, end in (((0.485, 0.72), (0.53, 0.72)), ((0.485, 0.24), (0.53, 0.24))):
            _arrow(canvas, start, end)
        _arrow(canvas, (0.57, 0.525), (0.47, 0.475))
        content = io.BytesIO()
        canvas.savefig(content, format="svg", metadata=METADATA["svg"])
    return content.getvalue()


def _trajectory(axes: Any) -> None:
    share = np.linspace(0, 1, 100)
    axes.plot(share, accuracy(share), color=GRAY)
    axes.scatter(EPOCHS, accuracy(EPOCHS), color=BLUE, zorder=3, s=36)
    axes.set(xlabel="epoch", ylabel="accuracy", xticks=[], yticks=[], xlim=(0, 1.05), ylim=(0, 1.1))


def _plane(axes: Any) -> None:
    share = np.linspace(EPOCHS[0], 1, 100)
    axes.plot(image_information(share), accuracy(share), color=GRAY)
    x, y = image_information(EPOCHS), accuracy(EPOCHS)
    axes.scatter(x, y, color=BLUE, zorder=3, s=36)
    axes.scatter(x[CHOSEN], y[CHOSEN], color=ORANGE, marker="*", zorder=4, s=240)
    axes.annotate("Algorithm 1", (x[CHOSEN], y[CHOSEN]), (8, 8), textcoords="offset points", color=ORANGE)
    axes.annotate("last", (x[-1], y[-1]), (0, 9), textcoords="offset points", ha="center")
    axes.set(xlabel="I(X;F): about the image", ylabel="I(Y;F): about the label", xticks=[], yticks=[])
    axes.margins(0.22)


def _choice(axes: Any) -> None:
    candidates = {"no teacher": 0.35, "last, kd": 0.55, "midpoint, kd": 0.6, "two teachers": 0.66, "last, wttm": 0.82}
    colors = [GRAY, *[BLUE] * (len(candidates) - 2), ORANGE]
    axes.barh(list(candidates), list(candidates.values()), color=colors, height=0.62)
    for row, name in enumerate(candidates):
        axes.text(0.02, row, name, va="center", color="white", fontsize=9.5)
    axes.scatter(0.9, len(candidates) - 1, color=ORANGE, marker="*", s=200)
    axes.set(xlabel="accuracy of short pilot runs", xlim=(0, 1), xticks=[], yticks=[])


def _student(axes: Any) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    for x, width, height, color, name in ((0.02, 0.3, 0.86, BLUE, "teacher"), (0.7, 0.2, 0.42, GREEN, "student")):
        layers = 5 if name == "teacher" else 3
        for layer in range(layers):
            size = height / layers
            place = (x, 0.5 - height / 2 + layer * size)
            box = FancyBboxPatch(place, width, size * 0.62, boxstyle="round,pad=0.01", color=color, linewidth=0)
            axes.add_patch(box)
        axes.text(x + width / 2, 0.5 - height / 2 - 0.05, name, ha="center", va="top")
    axes.add_patch(
        FancyArrowPatch((0.38, 0.48), (0.64, 0.48), arrowstyle="-|>", mutation_scale=18, color=ORANGE, linewidth=2)
    )
    axes.text(0.51, 0.56, "softened\npredictions", ha="center", fontsize=9.5)


def _arrow(canvas: Figure, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = FancyArrowPatch(
        start, end, transform=canvas.transFigure, arrowstyle="-|>", mutation_scale=18, color=GRAY, linewidth=1.5
    )
    canvas.add_artist(arrow)


if __name__ == "__main__":
    OUT.write_bytes(draw())
