"""What all pictures have in common: the colour and marker of a solver, and where to draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes

from maha_opt.plots.accuracy import OTHERS, STYLES


def styles_of(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every label; a solver with options other than its defaults gets a colour of its own.

    Args:
        labels: As `maha_opt.contenders.Contender.label` writes them.
    """
    unknown: dict[str, tuple[str, str]] = {}
    for label in labels:
        if label not in STYLES and label not in unknown:
            unknown[label] = OTHERS[len(unknown) % len(OTHERS)]
    return STYLES | unknown


def words(label: str) -> str:
    """A label for readers.

    >>> words("best_response:sweep=gauss_seidel")
    'best response, sweep gauss seidel'
    """
    return label.replace("accelerate=0", "not accelerated").replace("_", " ").replace("=", " ").replace(":", ", ")


def legend_below(ax: Axes, columns: int = 2, **options: Any) -> None:
    """A legend under the axes, where it covers nothing."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=columns, frameon=False, fontsize=8, **options)


def axes_or_new(ax: Axes | None, width: float = 6.4, height: float = 4.8) -> Axes:
    """The axes themselves, or those of a new figure, in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]
