"""How a run of training went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["loss_curve", "save_curve"]


def loss_curve(rows: Iterable[Mapping[str, Any]], ax: Axes | None = None, label: str | None = None) -> Axes:
    """Loss against steps: a line for what was learned from, points for what was judged by.

    Args:
        rows: With `step`, and `train_loss` or `validation_loss` in nats; those of `models.training.curves.curve`, or
            of a `curve.csv`.
        ax: Axes to draw on; None: those of a new figure.
        label: Of the run, where several are drawn on the same axes.

    Raises:
        ValueError: There is nothing to draw.
    """
    rows = list(rows)

    def points(name: str) -> list[tuple[float, float]]:
        return [(float(row["step"]), float(row[name])) for row in rows if row.get(name) not in (None, "")]

    learned, judged = points("train_loss"), points("validation_loss")
    if not learned and not judged:
        raise ValueError("There is nothing to draw: no row has a train_loss or a validation_loss.")
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(layout="constrained").subplots()
    colour = ax.plot([], [])[0].get_color()
    suffix = "" if label is None else f", {label}"
    if learned:
        ax.plot(*zip(*learned, strict=True), color=colour, linewidth=1, alpha=0.6, label=f"learned from{suffix}")
    if judged:
        ax.plot(*zip(*judged, strict=True), color=colour, marker="o", markersize=4, label=f"judged by{suffix}")
    ax.set(xlabel="step of the optimizer", ylabel="loss (nats per token)", title="Loss in training")
    ax.grid(True, color="0.9", linewidth=0.8)
    ax.legend(frameon=False)
    return ax


def save_curve(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draws `loss_curve` into a file; needs no display. The ending of the name says the format."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    loss_curve(rows, figure.subplots())
    figure.savefig(path, dpi=160)
