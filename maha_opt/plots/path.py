"""The exact weights along λ."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from maha_opt.plots.styles import axes_or_new
from maha_opt.validation.path import SolutionPath

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")


def solution_path_curves(path: SolutionPath, names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Each weight against λ: lines that bend where a weight is switched on or off or meets a bound.

    Args:
        path: What `maha_opt.validation.solution_path` found.
        names: Of the weights; "scale 1" and so on if omitted.
        ax: Axes to draw on; None: a new figure.

    Raises:
        ValueError: If there are not as many names as weights.
    """
    L = path.weights.shape[1]
    names = [f"scale {i + 1}" for i in range(L)] if names is None else list(names)
    if len(names) != L:
        raise ValueError(f"names must be {L}, one for each weight, but are {len(names)}.")
    ax = axes_or_new(ax)
    prices = path.l1
    same = bool((prices == prices[0]).all())
    x = path.t * (prices[0] if same else 1.0)
    for bend in x[1:-1]:
        ax.axvline(bend, color="0.75", linewidth=0.8, linestyle=":", zorder=0)
    for i, name in enumerate(names):
        price = "" if same else f" (λ up to {prices[i]:.2g})"
        ax.plot(x, path.weights[:, i], color=COLOURS[i % len(COLOURS)], label=name + price, linewidth=1.8)
        ax.plot(x[1:-1], path.weights[1:-1, i], "o", color=COLOURS[i % len(COLOURS)], markersize=3.5)
    ax.axhline(0, color="0.4", linewidth=0.8)
    count = len(path.breakpoints)
    ax.set_title(f"Exact weights along λ: linear between {count} breakpoint{'' if count == 1 else 's'} (dotted)")
    ax.set(xlabel="λ (units of $q$)" if same else "$t$, with λ(t) = t · λ", ylabel="weight $w_l$", xlim=(x[0], x[-1]))
    ax.legend(fontsize=8)
    return ax
