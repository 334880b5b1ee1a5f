"""A game of two players: what each answers to the other, and where that leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes

from maha_opt.contenders import Contender
from maha_opt.plots.styles import axes_or_new, legend_below, styles_of, words
from solvers import AffineVI, solve
from solvers.iterate import Iterative, trajectory
from solvers.prox import prox

COLOURS = ("#0072B2", "#CC79A7")
"""Of the two players, apart from those of the solvers that are drawn by default."""


def two_player_game(
    problem: AffineVI,
    solvers: Sequence[str] = ("best_response:damping=1", "projected_gradient"),
    steps: int = 40,
    limits: tuple[float, float] = (-0.05, 1.05),
    ax: Axes | None = None,
) -> Axes:
    """Best-response curves, the vector field ``−(Mw + q)`` of both players' marginal gains, and iterates.

    The equilibrium is where the curves cross: neither gains by moving alone.

    Args:
        problem: One game of two players without a sum, without batch dimensions.
        solvers: Iterative ones, flags with options.
        steps: How many iterates to draw.
        limits: Of both axes.
        ax: Axes to draw on; None: a new figure.

    Raises:
        ValueError: If the problem is another one.
    """
    if problem.batch_shape or problem.size != 2 or problem.feasible.total is not None:
        raise ValueError(
            f"problem must be a single one of 2 players without a sum, but has batch shape "
            f"{tuple(problem.batch_shape)}, {problem.size} players and the set {problem.feasible!r}."
        )
    ax = axes_or_new(ax, 6.4, 6.0)
    M, q = problem.M.detach().double(), problem.q.detach().double()
    exact = solve(problem, on_failure="raise").weights.detach()
    span = np.linspace(*limits, 25)
    x, y = np.meshgrid(span, span)
    slopes = -(np.stack([x, y], -1) @ M.T.numpy() + q.numpy())
    ax.streamplot(x, y, slopes[..., 0], slopes[..., 1], color="0.8", density=1.1, linewidth=0.8, arrowsize=0.8)
    other = torch.linspace(*limits, 401, dtype=torch.float64)
    for player in (0, 1):
        reply = _best_response(problem, player, other)
        points = (reply, other) if player == 0 else (other, reply)
        label = f"what player {player + 1} answers"
        ax.plot(*points, color=COLOURS[player], linewidth=2.2, label=label)
    styles = styles_of(solvers)
    for label in solvers:
        colour, marker = styles[label]
        method = cast(Iterative, Contender.parse(label).make())
        path = trajectory(method, problem.standard().detach(), steps)[..., 0].numpy()
        ax.plot(*path.T, color=colour, marker=marker, markersize=4.5, linewidth=1, alpha=0.9, label=words(label))
    ax.plot(*exact, "*", color="#D55E00", markersize=17, markeredgecolor="white", zorder=5, label="equilibrium")
    coupling = abs(float(M[0, 1] - M[1, 0])) / 2
    ax.set_title(f"A game of two scales: antisymmetric coupling {coupling:.2g}, own curvatures "
                 f"{float(M[0, 0]):.2g} and {float(M[1, 1]):.2g}", fontsize=10)  # fmt: skip
    ax.set(xlabel="weight $w_1$ of player 1", ylabel="weight $w_2$ of player 2", xlim=limits, ylim=limits)
    ax.set_aspect("equal")
    legend_below(ax)
    return ax


def _best_response(problem: AffineVI, player: int, other: torch.Tensor) -> torch.Tensor:
    """``argmin_v ½M_ii v² + (q_i + M_ij w_j) v + λ_i|v|`` between the player's bounds, for many ``w_j``."""
    standard = problem.standard().detach()
    alone = standard.coordinate(player)
    own = alone.M[0, 0]
    slope = standard.q[player] + standard.M[player, 1 - player] * other
    many = alone.select(torch.zeros(len(other), dtype=torch.long))
    return prox(many, (-slope / own).unsqueeze(0), (1 / own).expand(1, len(other)))[0]
