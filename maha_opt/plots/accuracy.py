"""Accuracy against time: what every solver costs, and how far off it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from maha_opt.summary import Row, read_csv, summarise

if TYPE_CHECKING:
    import pandas as pd

# Colours of Okabe and Ito (2008), told apart by colour-blind readers; the markers tell them apart in black and white.
STYLES = {
    "pivot": ("#D55E00", "*"),
    "cvxpylayers": ("#000000", "D"),
    "best_response": ("#0072B2", "o"),
    "projected_gradient": ("#009E73", "s"),
    "mirror_descent": ("#CC79A7", "^"),
    "scipy": ("#777777", "X"),
    "softmax": ("#E69F00", "P"),
    "mean": ("#56B4E9", "p"),
}
OTHERS = (("#8C510A", "v"), ("#5E3C99", "<"), ("#1B7837", ">"), ("#762A83", "h"))
SIZES = {"pivot": 15.0, "softmax": 10.0, "mean": 6.0}
"""Of filled markers, in points; the two heuristics often lie on each other."""

LABEL_OFFSETS = ((5, 4), (5, -10), (-12, 4), (-12, -10))
"""Where the numbers of steps stand, in points from their markers, solver by solver."""

LEAST_ERROR = 1e-13
"""Smaller errors are drawn here."""

Y_LABEL = "mean error of the weights, $\\|w - w^*\\|_\\infty$"


def accuracy_against_time(
    table: Iterable[Mapping[str, Any]] | pd.DataFrame | Path | str, ax: Axes | Sequence[Axes] | None = None
) -> list[Axes]:
    """Error of the weights against time per problem, for every solver: down and to the left is better.

    One marker a solver. A hollow one is a fixed number of steps, written beside it, and a line joins the numbers of
    steps; a filled one ran to its tolerance. The dashed line is the time of the reference, which the errors are
    against; those of exact solvers are its own. The grey line is the front: nothing to the left of it is as accurate.

    Args:
        table: Cells of a comparison, as mappings, as a data frame, or as the path of a ``results.csv``.
        ax: Axes to draw on, one for each kind of problem in the table; None: a new figure.

    Returns:
        The axes, one for each kind.

    Raises:
        ValueError: If nothing in the table has an error and a time, or there are fewer axes than kinds of problems.
    """
    rows, kinds = _drawable(table)
    if ax is None:
        import matplotlib.pyplot as plt

        return _draw_figure(plt.figure(), rows, kinds)
    axes = [ax] if isinstance(ax, Axes) else list(ax)
    if len(axes) < len(kinds):
        raise ValueError(f"The table has the kinds {', '.join(kinds)}, but there are only {len(axes)} axes.")
    styles = _styles(rows)
    for axis, kind in zip(axes, kinds, strict=False):
        _draw(axis, [row for row in rows if row.kind == kind], kind, styles)
        axis.set_ylabel(Y_LABEL)
        axis.legend(handles=_legend(styles), fontsize=8)
    return axes[: len(kinds)]


def save_picture(table: Iterable[Mapping[str, Any]] | pd.DataFrame | Path | str, path: Path | BinaryIO) -> None:
    """Draws `accuracy_against_time` into a file; needs no display.

    Args:
        table: As there.
        path: The picture, whose ending says the format; or a file that is open for writing, for PNG.
    """
    figure = Figure()
    _draw_figure(figure, *_drawable(table))
    figure.savefig(path, dpi=160)


def _drawable(table: Iterable[Mapping[str, Any]] | pd.DataFrame | Path | str) -> tuple[list[Row], list[str]]:
    """The rows with a time, and the kinds of problems with an error."""
    rows = [row for row in summarise(_records(table)) if row.measured and "seconds_per_problem" in row.values]
    kinds = list(dict.fromkeys(row.kind for row in rows if _has_error(row)))
    if not kinds:
        raise ValueError("The table has no row with an error and a time: there is nothing to draw.")
    return rows, kinds


def _draw_figure(figure: Figure, rows: list[Row], kinds: list[str]) -> list[Axes]:
    """A panel for each kind, and one legend."""
    figure.set_layout_engine("constrained")
    figure.set_size_inches(max(6.4, 5.2 * len(kinds)), 5.0)
    axes = list(figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0])
    styles = _styles(rows)
    for axis, kind in zip(axes, kinds, strict=True):
        _draw(axis, [row for row in rows if row.kind == kind], kind, styles)
    axes[0].set_ylabel(Y_LABEL)
    figure.legend(
        handles=_legend(styles), loc="outside lower center", ncols=min(4, 1 + len(kinds) * 2), frameon=False, fontsize=9
    )
    return axes


def _draw(axis: Axes, rows: list[Row], kind: str, styles: Mapping[str, tuple[str, str]]) -> None:
    axis.set(xscale="log", yscale="log", title=f"{kind} problems", xlabel="time per problem, forward + backward (µs)")
    axis.grid(True, which="major", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.yaxis.set_major_locator(LogLocator(numticks=20))
    points: list[tuple[float, float]] = []
    for turn, (solver, (colour, marker)) in enumerate(styles.items()):
        offset = LABEL_OFFSETS[turn % len(LABEL_OFFSETS)]
        own = [row for row in rows if row.solver == solver]
        curve = sorted(
            (row for row in own if row.steps is not None and _has_error(row)), key=lambda row: row.steps or 0
        )
        if curve:
            x, y = np.array([_point(row) for row in curve]).T
            axis.plot(x, y, color=colour, marker=marker, markerfacecolor="white", linewidth=1.2, markersize=7)
            for row in curve:
                axis.annotate(
                    str(row.steps), _point(row), offset, textcoords="offset points", fontsize=7.5, color=colour
                )
        for row in own:
            if row.steps is None and _has_error(row):
                size = SIZES.get(solver, 8.0)
                axis.plot(*_point(row), color=colour, marker=marker, markersize=size, markeredgecolor="white", zorder=4)
            elif row.steps is None:
                axis.axvline(1e6 * row.values["seconds_per_problem"], color=colour, linestyle="--", linewidth=1)
        points += [_point(row) for row in own if _has_error(row)]
    _draw_front(axis, points)


def _draw_front(axis: Axes, points: list[tuple[float, float]]) -> None:
    """A step line through the points that no other beats in time and, by more than a tenth, in error."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < 0.9 * front[-1][1]:
            front.append((x, y))
    if front:
        x, y = np.array(front).T
        axis.step(x, y, where="post", color="0.75", linewidth=5, alpha=0.5, zorder=1, solid_joinstyle="round")


def _point(row: Row) -> tuple[float, float]:
    return 1e6 * row.values["seconds_per_problem"], max(row.values["error_weights_mean"], LEAST_ERROR)


def _has_error(row: Row) -> bool:
    return bool(np.isfinite(row.values.get("error_weights_mean", np.nan)))


def _styles(rows: Iterable[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every solver, in the order of the table."""
    names = dict.fromkeys(row.solver for row in rows)
    unknown = iter(OTHERS * (1 + len(names) // len(OTHERS)))
    return {name: STYLES[name] if name in STYLES else next(unknown) for name in names}


def _legend(styles: Mapping[str, tuple[str, str]]) -> list[Line2D]:
    handles = []
    for name, (colour, marker) in styles.items():
        if name == "cvxpylayers":
            handles.append(Line2D([], [], color=colour, linestyle="--", linewidth=1, label="cvxpylayers (reference)"))
            continue
        size = min(SIZES.get(name, 8.0), 13.0)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=size, linestyle="", label=name))
    hollow = {"color": "0.3", "marker": "o", "markerfacecolor": "white", "markersize": 7, "linewidth": 1.2}
    return [*handles, Line2D([], [], label="unrolled, with its number of steps", **hollow)]


def _records(table: Iterable[Mapping[str, Any]] | pd.DataFrame | Path | str) -> Iterable[Mapping[str, Any]]:
    if isinstance(table, (str, Path)):
        return read_csv(table)
    if hasattr(table, "to_dict"):
        frame = cast("pd.DataFrame", table)
        return cast(Iterable[Mapping[str, Any]], frame.astype(object).where(frame.notna(), None).to_dict("records"))
    return cast(Iterable[Mapping[str, Any]], table)
