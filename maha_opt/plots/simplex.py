"""The simplex of three scales: what is minimised, where it is least, and how solvers get there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes

from maha_opt.contenders import Contender
from maha_opt.plots.styles import axes_or_new, legend_below, styles_of, words
from solvers import AffineVI, Simplex, exploitability, solve
from solvers.iterate import Iterative, trajectory

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
FINE = 120


def simplex_of_three(
    problem: AffineVI,
    solvers: Sequence[str] = ("projected_gradient:accelerate=0", "best_response", "mirror_descent"),
    steps: int = 60,
    ax: Axes | None = None,
) -> Axes:
    """Contours over all mixtures of three scales, the iterates of some solvers, and the solution.

    The contours are those of the objective above its least value where ``M`` is symmetric, and of the exploitability in
    a game, both in the units of ``q``, each a factor of 4 above the one inside of it.

    Args:
        problem: One problem on the simplex with three scales, without batch dimensions.
        solvers: Iterative ones, flags with options.
        steps: How many iterates to draw.
        ax: Axes to draw on; None: a new figure.

    Raises:
        ValueError: If the problem is another one.
    """
    if problem.batch_shape or problem.size != 3 or not isinstance(problem.feasible, Simplex):
        raise ValueError(
            f"problem must be a single one with 3 scales on the Simplex, but has batch shape "
            f"{tuple(problem.batch_shape)}, {problem.size} scales and the set {problem.feasible!r}."
        )
    ax = axes_or_new(ax, 6.4, 5.8)
    exact = solve(problem, on_failure="raise").weights.detach()
    game = not bool(problem.standard().is_symmetric())
    w = _grid(exact)
    if game:
        many = AffineVI(problem.M.expand(len(w), 3, 3), problem.q, l1=problem.l1)
        height, what = exploitability(many, w), "exploitability"
    else:
        height, what = _objective(problem, w) - _objective(problem, exact), "objective above its least"
    x, y = _plane(w.numpy()).T
    top = float(height.max())
    levels = top * 4.0 ** -np.arange(7, -1, -1)
    shades = colormaps["Blues"](np.linspace(0.05, 0.75, len(levels)))
    filled = ax.tricontourf(x, y, height.clamp_min(levels[0] / 4).numpy(), [0.0, *levels], colors=shades)
    ax.tricontour(x, y, height.numpy(), levels, colors="white", linewidths=0.7)
    bar = ax.figure.colorbar(filled, ax=ax, shrink=0.75, label=f"{what} (units of $q$)", ticks=levels)
    bar.ax.set_yticklabels([f"{level:.1g}" for level in levels])
    ax.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color="0.2", linewidth=1.2)
    for label, (colour, marker) in _chosen(solvers).items():
        method = cast(Iterative, Contender.parse(label).make())
        path = trajectory(method, problem.standard().detach(), steps)[..., 0].numpy()
        ax.plot(*_plane(path).T, color=colour, marker=marker, markersize=4, linewidth=1.1, markeredgecolor="white",
                markeredgewidth=0.4, label=words(label))  # fmt: skip
    ax.plot(*_plane(exact.numpy()), "*", color="#D55E00", markersize=17, markeredgecolor="white", zorder=5,
            label="equilibrium" if game else "minimum")  # fmt: skip
    for corner, (dx, dy), i in zip(CORNERS, ((-0.02, -0.05), (0.02, -0.05), (0.0, 0.03)), (1, 2, 3), strict=True):
        ax.text(corner[0] + dx, corner[1] + dy, f"all on scale {i}", ha="center", fontsize=9)
    weights = ", ".join(f"{value:.2f}" for value in exact)
    ax.set_title(
        f"Mixtures of three scales: {'a game' if game else 'a convex program'} with $w^*$ = ({weights})", fontsize=10
    )
    ax.set(aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.1, 0.97))
    ax.set(xlabel="weight of scale 2 + ½ weight of scale 3", ylabel="√¾ · weight of scale 3")
    ax.spines[:].set_visible(False)
    legend_below(ax)
    return ax


def _chosen(solvers: Sequence[str]) -> dict[str, tuple[str, str]]:
    styles = styles_of(solvers)
    return {label: styles[label] for label in solvers}


def _plane(w: np.ndarray) -> np.ndarray:
    """Barycentric coordinates."""
    return w @ CORNERS


def _grid(like: torch.Tensor) -> torch.Tensor:
    i, j = np.meshgrid(np.arange(FINE + 1), np.arange(FINE + 1))
    inside = i + j <= FINE
    w = np.stack([FINE - i - j, i, j], -1)[inside] / FINE
    return torch.as_tensor(w, dtype=like.dtype)


def _objective(problem: AffineVI, w: torch.Tensor) -> torch.Tensor:
    return (0.5 * w * (w @ problem.M.detach()) + problem.q.detach() * w + problem.l1 * w.abs()).sum(-1)
