"""How good the gradients and the weights of an approximate solver are after so many iterations."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from maha_opt.plots.styles import axes_or_new, legend_below, styles_of, words
from maha_opt.validation.bootstrap import confidence

LINES = {"implicit": "-", "unrolled": "--", "one_step": ":"}
LEAST = 1e-13
"""Smaller errors are drawn here."""


def gradient_error_against_iterations(table: pd.DataFrame, problem: str | None = None, ax: Axes | None = None) -> Axes:
    """Relative error of the gradient of ``q`` against the number of iterations, for every solver and gradient mode.

    The line is the geometric mean over the seeds, the band its 95 % bootstrap interval.

    Args:
        table: What `maha_opt.validation.compare` returned, with several numbers of steps.
        problem: Which problem; the only one if omitted.
        ax: Axes to draw on; None: a new figure.

    Raises:
        ValueError: If there is no such problem, several and none is named, or nothing to draw.
    """
    label = "error of the gradient, $\\|g - g^*\\| / \\|g^*\\|$"
    return _error_against_iterations(table, problem, ax, "error_gradient_q", label, "gradients")


def weight_error_against_iterations(table: pd.DataFrame, problem: str | None = None, ax: Axes | None = None) -> Axes:
    """Error of the weights against the number of iterations, drawn like `gradient_error_against_iterations`.

    Args:
        table: As there.
        problem: As there.
        ax: As there.

    Raises:
        ValueError: As there.
    """
    label = "mean error of the weights, $\\|w - w^*\\|_\\infty$"
    return _error_against_iterations(table, problem, ax, "error_weights_mean", label, "weights")


def _error_against_iterations(
    table: pd.DataFrame, problem: str | None, ax: Axes | None, column: str, label: str, what: str
) -> Axes:
    names = list(table["problem"].unique())
    problem = names[0] if problem is None and len(names) == 1 else problem
    if problem not in names:
        raise ValueError(f"problem must be one of {', '.join(map(repr, names))}, but got {problem!r}.")
    own = table[(table["problem"] == problem) & table["steps"].notna() & table[column].notna()]
    if own.empty:
        raise ValueError(f"table has no row with a number of steps and {column}: nothing to draw.")
    ax = axes_or_new(ax)
    own = own.assign(**{column: own[column].clip(lower=LEAST)})
    keys = ["solver", "gradient", "steps"]
    spread = confidence(own, keys, [column], statistic="geometric mean", resamples=500)
    solvers, modes = list(own["solver"].unique()), [mode for mode in LINES if mode in set(own["gradient"])]
    styles = styles_of(solvers)
    for solver, mode in product(solvers, modes):
        rows = spread[(spread["solver"] == solver) & (spread["gradient"] == mode)].sort_values("steps")
        if len(rows):
            colour, marker = styles[solver]
            x = rows["steps"].astype(float)
            ax.plot(x, rows["value"], LINES[mode], color=colour, marker=marker, markersize=4.5)
            ax.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="iterations $K$", ylabel=label)
    counts = sorted(own["steps"].unique())
    ax.set_xticks(counts, [f"{count:g}" for count in counts])
    ax.minorticks_off()
    seeds = own["seed"].nunique()
    ax.set_title(f"{problem}: {what} after K iterations, {seeds} seed{'' if seeds == 1 else 's'}", fontsize=10)
    handles = [Line2D([], [], color=styles[s][0], marker=styles[s][1], label=words(s)) for s in solvers]
    handles += [Line2D([], [], color="0.3", linestyle=LINES[mode], label=words(mode)) for mode in modes]
    legend_below(ax, handles=handles)
    ax.grid(True, which="major", color="0.92", linewidth=0.8)
    return ax
