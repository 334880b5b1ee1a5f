"""Error against iteration, with the spread over seeds, and how fast theory says that it falls."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maha_opt.plots.styles import axes_or_new, legend_below, styles_of, words
from maha_opt.validation.convergence import FLOOR, Convergence

LEAST = 1e-14
"""Smaller errors are drawn here."""

HIGHEST, TOP = 1e30, 1e2
"""Larger errors are drawn at the first, and the picture ends at the second."""

BAND = (0.1, 0.9)
"""Quantiles over the seeds between which the band lies."""


def convergence_curves(found: Convergence, problem: str | None = None, ax: Axes | None = None) -> Axes:
    """Error of the weights against iteration for every solver: the median over all seeds, and the middle 80 % of them.

    Beside each solver stands its median rate, fitted and theoretical (in brackets, "≈" for a guide).

    Args:
        found: What `maha_opt.validation.convergence` found.
        problem: Which problem; the only one if omitted.
        ax: Axes to draw on; None: a new figure.

    Raises:
        ValueError: If there is no such problem, or several and none is named.
    """
    names = list(dict.fromkeys(found.errors["problem"])) if len(found.errors) else []
    if problem is None and len(names) == 1:
        problem = names[0]
    if problem not in names:
        raise ValueError(f"problem must be one of {', '.join(map(repr, names))}, but got {problem!r}.")
    ax = axes_or_new(ax)
    errors = found.errors[found.errors["problem"] == problem]
    rates = found.rates[found.rates["problem"] == problem]
    styles = styles_of(found.errors["solver"].unique())
    for solver, own in errors.groupby("solver", sort=False):
        colour, marker = styles[str(solver)]
        spread = own.groupby("iteration")["error"].quantile([*BAND, 0.5]).unstack().clip(LEAST, HIGHEST)
        label = f"{words(str(solver))}: {_rates(rates[rates['solver'] == solver])}"
        ax.plot(spread.index, spread[0.5], color=colour, marker=marker, markevery=0.12, markersize=5, label=label)
        ax.fill_between(spread.index, spread[BAND[0]], spread[BAND[1]], color=colour, alpha=0.12, linewidth=0)
    ax.axhspan(LEAST, FLOOR, color="0.93", zorder=0)
    ax.text(0.01, FLOOR / 2, "rounding", color="0.45", fontsize=8, va="top", transform=ax.get_yaxis_transform())
    ax.set(
        yscale="log",
        ylim=(LEAST, min(ax.get_ylim()[1], TOP)),
        xlabel="iteration $k$",
        ylabel="error $\\|w_k - w^*\\|_2$ (weights)",
    )
    ax.set_xscale("symlog", linthresh=10, linscale=0.6)
    ax.set_xlim(0, errors["iteration"].max())
    seeds = errors["seed"].nunique()
    ax.set_title(f"{problem}: median and middle 80 % of {seeds} seeds", fontsize=10)
    legend_below(ax, columns=1, title="solver: fitted rate per iteration (theory)", title_fontsize=8)
    ax.grid(True, which="major", color="0.92", linewidth=0.8)
    return ax


def save_convergence(found: Convergence, path: Path) -> None:
    """Draws `convergence_curves` of every problem into one file; needs no display.

    Args:
        found: As there.
        path: The picture; its ending says the format.
    """
    names = list(dict.fromkeys(found.errors["problem"]))
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(6.6 * columns, 6.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for name, ax in zip(names, axes, strict=False):
        convergence_curves(found, name, ax)
    for ax in axes[len(names) :]:
        ax.remove()
    figure.savefig(path, dpi=150)


def _rates(rates: pd.DataFrame) -> str:
    seeds, lost = len(rates), (rates["status"] == "diverged").sum()
    steady = rates[rates["theoretical"] != 0]  # those that end after finitely many steps have no rate
    if steady.empty:
        return "ends after finitely many steps"
    theory = "" if steady["theory"].iloc[0] == "none" else f"{steady['theoretical'].median():.3f}"
    guide = "≈ " if steady["theory"].iloc[0] == "guide" else ""
    text = f"{steady['fitted'].median():.3f}" + (f" ({guide}{theory})" if theory else "")
    return f"{text}, {lost} of {seeds} diverge" if lost else text
