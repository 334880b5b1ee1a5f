r"""The exact weights along λ: a piecewise linear path, with its breakpoints.

With ``λ(t) = t·l1`` the solution on a fixed active set is affine in ``t``, and so are the conditions under which that
active set is the right one: it holds on one interval of ``t``. So two points with the same active set have no
breakpoint between them, and where they differ, halving finds each breakpoint to rounding. All undecided intervals are
halved together, in one batch of exact solves. (The path is that of the lasso: Osborne, Presnell and Turlach 2000.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from maha_opt.compare import take
from solvers import AffineVI, solve
from solvers.natural import natural_map

HALVINGS = 44
"""2^-44 of the path is less than the width of a tie."""

SAME = 1e-10
"""Breakpoints nearer to each other than this, relative to the path, are one."""


@dataclass(frozen=True)
class SolutionPath:
    """The weights of one problem for ``λ(t) = t·l1``, ``t`` in [0, 1].

    Attributes:
        l1: ``(L,)``, the weights ``λ`` at the end of the path.
        t: ``(K,)``, where it bends, with the ends 0 and 1.
        weights: ``(K, L)``, the solution there; between them it is linear.
        active: ``(K − 1, L)`` bool, which weights are free between them: at no bound and not at the kink of ``|·|``.
    """

    l1: np.ndarray
    t: np.ndarray
    weights: np.ndarray
    active: np.ndarray

    @property
    def breakpoints(self) -> np.ndarray:
        """Where the active set changes, ``(K − 2,)``."""
        return self.t[1:-1]

    def at(self, t: float | np.ndarray) -> np.ndarray:
        """The weights at any ``t`` in [0, 1], ``(*shape of t, L)``.

        Raises:
            ValueError: If a ``t`` is outside.
        """
        t = np.asarray(t, float)
        if not ((t >= 0) & (t <= 1)).all():
            raise ValueError(f"t must be in [0, 1], but reaches from {t.min()} to {t.max()}.")
        return np.stack([np.interp(t, self.t, column) for column in self.weights.T], -1)


def solution_path(problem: AffineVI, l1: Tensor | float) -> SolutionPath:
    """Follows the exact weights from ``λ = 0`` to ``λ = l1``.

    >>> from solvers import Free
    >>> q = torch.tensor([-2.0, -1.0], dtype=torch.float64)
    >>> path = solution_path(AffineVI(torch.eye(2, dtype=torch.float64), q, Free()), l1=4.0)
    >>> path.breakpoints  # soft thresholding: the second weight is 0 from λ = 1 on, the first from λ = 2 on
    array([0.25, 0.5 ])

    Args:
        problem: One problem, without batch dimensions, with positive definite ``½(M + Mᵀ)``; its own ``l1`` is not
            used. Computed in float64.
        l1: Where the path ends: a number, or one for each weight, ``(L,)``; positive or 0.

    Raises:
        ValueError: If the problem is a batch, or ``l1`` has another shape, a negative entry, or none that is positive.
        ConvergenceError: If a solve fails.
    """
    if problem.batch_shape:
        raise ValueError(f"problem must be a single one, but has batch shape {tuple(problem.batch_shape)}.")
    end = torch.as_tensor(l1, dtype=torch.float64)
    if end.shape not in ((), (problem.size,)):
        raise ValueError(f"l1 must be a number or have shape ({problem.size},), but has shape {tuple(end.shape)}.")
    if not bool((end >= 0).all() & end.isfinite().all() & (end > 0).any()):
        raise ValueError(f"l1 must be at least 0, finite, and somewhere positive, but got {end.tolist()}.")
    along = _Along(problem, end.expand(problem.size))
    t = _apart(np.concatenate(([0.0], along.bends().numpy(), [1.0])))
    weights = along.weights(torch.from_numpy(t)).numpy()
    inside = torch.from_numpy(0.5 * (t[:-1] + t[1:]))
    active = along.active_sets(inside)[:, : problem.size].bool().numpy()
    return SolutionPath(along.l1.numpy(), t, weights, active)


class _Along:
    """Exact solutions for many ``t`` at once."""

    def __init__(self, problem: AffineVI, l1: Tensor) -> None:
        self.l1 = l1
        one = replace(problem, M=problem.M.detach().unsqueeze(0), q=problem.q.detach().unsqueeze(0), l1=0.0)
        self.problem = take(one, slice(None), torch.float64)

    def at(self, t: Tensor) -> AffineVI:
        many = take(self.problem, torch.zeros(len(t), dtype=torch.long))
        return replace(many, l1=t.unsqueeze(-1) * self.l1)

    def weights(self, t: Tensor) -> Tensor:
        """``(T, L)``."""
        return solve(self.at(t), on_failure="raise").weights

    def bends(self) -> Tensor:
        """Where the active set changes, in order."""
        # at λ = 0 nothing holds a weight at the kink, which says nothing of what follows
        left, right = torch.tensor([[SAME / 2], [1.0]], dtype=torch.float64)
        before, after = self.active_sets(left), self.active_sets(right)
        for _ in range(HALVINGS):
            middle = 0.5 * (left + right)
            between = self.active_sets(middle)
            left, right = torch.cat((left, middle)), torch.cat((middle, right))
            before, after = torch.cat((before, between)), torch.cat((between, after))
            differ = (before != after).any(-1)
            left, right, before, after = left[differ], right[differ], before[differ], after[differ]
        return (0.5 * (left + right)).sort().values

    def active_sets(self, t: Tensor) -> Tensor:
        """Which weights are free, at which bound and of which sign, and whether a budget is spent; ``(T, 4L + 1)``."""
        problem = self.at(t)
        standard = problem.standard()
        w = self.weights(t).T
        on = natural_map(standard, w, 0.0).on
        nothing = torch.zeros_like(on.free)
        tight = nothing[0] if on.tight is None else on.tight
        at_lower, at_upper = (nothing if at is None else at for at in (on.at_lower, on.at_upper))
        return torch.cat((on.free, at_lower, at_upper, on.free * w.sign(), tight.unsqueeze(0))).T


def _apart(t: np.ndarray) -> np.ndarray:
    """The ends and every breakpoint that is not the same as the one before or as an end."""
    kept = [t[0]]
    for value in t[1:-1]:
        if value - kept[-1] > SAME and t[-1] - value > SAME:
            kept.append(value)
    return np.array([*kept, t[-1]])
