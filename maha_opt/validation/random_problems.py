r"""Random problems of a named difficulty, whose solutions are known because they were planted.

A problem is made backwards. Its matrix is ``M = S + c K`` with

- ``S = UΛUᵀ`` for a random rotation ``U`` and eigenvalues that fall geometrically from 1 to ``1/condition``,
- ``K`` antisymmetric with ``‖K‖ = 1``, so that ``c = coupling`` is how strong the game is against its potential part.

Then the weights are drawn (some free, the others held at a bound or at the kink of ``|·|``) and for each coordinate a
distance ``δ_i`` from the nearest tie: of a free weight from where its piece ends, of a held one's force from where it
would let go. The least is ``tie_distance``, exactly. With the forces ``f`` and a price ``ν`` of the sum::

    q = −Mw − f − ν,   f_i = λ_i sign(w_i) where free, and δ_i beyond its threshold where held,

makes ``w`` the solution. (Our construction.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import AffineVI, Box, Budget, CappedSimplex, FeasibleSet, Free, NonNegative, Simplex, SumTo


@dataclass(frozen=True)
class Difficulty:
    """How hard random problems are. Call it with a seed to get them.

    >>> problem = Difficulty(condition=100.0, feasible="box")(seed=0)
    >>> problem.batch_shape, problem.size
    (torch.Size([64]), 4)

    Attributes:
        scales: Number of scales ``L``.
        condition: Condition number of the symmetric part of ``M``, whose largest eigenvalue is 1.
        coupling: Spectral norm of the antisymmetric part of ``M``; 0 for a convex program.
        tie_distance: The least distance of any coordinate from a tie, 0 for a tie, below ``1/(scales + 1)``.
        feasible: Name of the set, one of `maha_opt.available_sets`.
        price: L1 weights are drawn between half of this and three halves; where the set allows both signs, some weights
            are held at 0 by them.
        active: Share of the weights that are free, where the set or the price can hold the others.
        problems: Number of problems for each seed.

    Raises:
        ValueError: If a value is out of its range; the message names it.
    """

    scales: int = 4
    condition: float = 10.0
    coupling: float = 0.0
    tie_distance: float = 0.02
    feasible: str = "simplex"
    price: float = 0.0
    active: float = 0.75
    problems: int = 64

    def __post_init__(self) -> None:
        least = {"scales": 1, "condition": 1, "coupling": 0, "price": 0, "problems": 1}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} must be at least {bound}, but got {getattr(self, name)}.")
        if not 0 <= self.tie_distance < 1 / (self.scales + 1):
            raise ValueError(
                f"tie_distance must be at least 0 and below 1/(scales + 1) = {1 / (self.scales + 1):.3g}, "
                f"but got {self.tie_distance}."
            )
        if not 0 < self.active <= 1:
            raise ValueError(f"active must be in (0, 1], but got {self.active}.")
        if self.feasible not in _SETS:
            raise ValueError(f"feasible must be one of {', '.join(map(repr, _SETS))}, but got {self.feasible!r}.")

    def __call__(self, seed: int) -> AffineVI:
        """The problems of a seed, ``(problems, L)`` in float64: the same ones every time."""
        return self.planted(seed)[0]

    def planted(self, seed: int) -> tuple[AffineVI, Tensor]:
        """The problems of a seed and their solutions, ``(problems, L)``."""
        draw = _Draw(self, seed)
        M = draw.matrix()
        w, f, feasible = _SETS[self.feasible](draw)
        nu = torch.zeros(self.problems, 1, dtype=w.dtype)
        if isinstance(feasible, Budget):  # it is spent: its price is positive
            nu = draw.uniform(1) + self.tie_distance
        elif feasible.total is not None:
            nu = draw.normal(1)
        q = -(M @ w.unsqueeze(-1)).squeeze(-1) - f - nu
        return AffineVI(M, q, feasible, draw.l1 if self.price else 0.0, symmetric=self.coupling == 0), w


class _Draw:
    """The random numbers of a seed, in the order in which they are drawn.

    Attributes:
        free: ``(B, L)`` bool, which weights are to be free.
        u: ``(B, L)`` in [0, 1), how much farther each is from a tie than ``tie_distance``; 0 for one of each problem.
        l1: ``(B, L)``, the weights ``λ``.
    """

    def __init__(self, difficulty: Difficulty, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shape = (difficulty.problems, difficulty.scales)
        self.difficulty = difficulty
        self.delta = torch.tensor(difficulty.tie_distance, dtype=torch.float64)  # a float times bool would be float32
        L = difficulty.scales
        count = min(L, max(2, round(difficulty.active * L)))
        order = self.uniform(L).argsort(-1)
        self.free = order.argsort(-1) < count
        nearest = torch.arange(L) == torch.randint(L, (difficulty.problems, 1), generator=self.generator)
        self.u = torch.where(nearest, 0.0, self.uniform(L))
        self.l1 = difficulty.price * (0.5 + self.uniform(L))

    def uniform(self, size: int) -> Tensor:
        return torch.rand(self.shape[0], size, generator=self.generator, dtype=torch.float64)

    def normal(self, *sizes: int) -> Tensor:
        return torch.randn(self.shape[0], *sizes, generator=self.generator, dtype=torch.float64)

    def signs(self) -> Tensor:
        return 1.0 - 2.0 * (self.uniform(self.shape[1]) < 0.5)

    def matrix(self) -> Tensor:
        """``M = UΛUᵀ + c K``, ``(B, L, L)``."""
        L = self.shape[1]
        U, R = torch.linalg.qr(self.normal(L, L))
        U = U * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # makes the rotation uniform (Mezzadri 2007)
        eigenvalues = self.difficulty.condition ** -torch.linspace(0, 1, L, dtype=U.dtype)
        S = (U * eigenvalues) @ U.mT
        K = self.normal(L, L)
        K = K - K.mT
        norm = torch.linalg.matrix_norm(K, 2, keepdim=True).clamp_min(torch.finfo(K.dtype).tiny)
        return 0.5 * (S + S.mT) + self.difficulty.coupling * K / norm

    def held_at_zero_from_below(self) -> Tensor:
        """Forces that hold what is not free at a lower bound 0, and the slope ``λ`` where it is free."""
        return self.l1 - torch.where(self.free, 0.0, self.delta + self.u)

    def on_simplex(self) -> Tensor:
        """Weights that sum to 1, each free one at least ``δ``."""
        u = self.u * self.free
        count, total = self.free.sum(-1, keepdim=True), u.sum(-1, keepdim=True)
        shares = torch.where(total > 0, u / total, self.free / count)
        return self.delta * self.free + (1 - count * self.delta) * shares


Planted = tuple[Tensor, Tensor, FeasibleSet]
"""Weights ``(B, L)``, forces ``(B, L)`` and the set."""


def _simplex(draw: _Draw) -> Planted:
    return draw.on_simplex(), draw.held_at_zero_from_below(), Simplex()


def _capped_simplex(draw: _Draw) -> Planted:
    """The largest weight is at the cap, and at least ``δ`` above the next."""
    if draw.shape[1] == 1:
        return (*_simplex(draw)[:2], CappedSimplex(1.0))
    w, delta = draw.on_simplex(), draw.delta
    top = torch.arange(draw.shape[1]) == w.argmax(-1, keepdim=True)
    count = draw.free.sum(-1, keepdim=True)
    shares = (w - delta * draw.free) / (1 - count * delta)
    w = delta * draw.free + (1 - (count + 1) * delta) * shares + delta * top
    f = draw.held_at_zero_from_below() + top * (delta + draw.u)
    return w, f, CappedSimplex(w.amax(-1, keepdim=True))


def _box(draw: _Draw) -> Planted:
    """Of the weights that are not free, half are at 0 and half at 1."""
    at_upper = ~draw.free & (draw.signs() > 0)
    inside = draw.delta + (1 - 2 * draw.delta) * draw.u
    w = torch.where(draw.free, inside, at_upper.to(inside.dtype))
    return w, draw.held_at_zero_from_below() + 2 * at_upper * (draw.delta + draw.u), Box(0.0, 1.0)


def _nonnegative(draw: _Draw) -> Planted:
    return draw.free * (draw.delta + draw.u), draw.held_at_zero_from_below(), NonNegative()


def _budget(draw: _Draw) -> Planted:
    w, f, _ = _nonnegative(draw)
    return w, f, Budget(w.sum(-1))


def _signed(draw: _Draw) -> tuple[Tensor, Tensor]:
    """Weights of both signs; with a price, what is not free is held at 0, its force ``δ`` inside of ``±λ``."""
    if not draw.difficulty.price:
        draw.free = torch.ones_like(draw.free)
    signs, distance = draw.signs(), draw.delta + draw.u
    draw.l1 = torch.where(draw.free, draw.l1, torch.maximum(draw.l1, distance))
    return draw.free * signs * distance, signs * (draw.l1 - torch.where(draw.free, 0.0, distance))


def _sum_to(draw: _Draw) -> Planted:
    w, f = _signed(draw)
    return w, f, SumTo(w.sum(-1))


def _free(draw: _Draw) -> Planted:
    return (*_signed(draw), Free())


_SETS: dict[str, Callable[[_Draw], Planted]] = {
    "simplex": _simplex,
    "capped_simplex": _capped_simplex,
    "box": _box,
    "budget": _budget,
    "nonnegative": _nonnegative,
    "sum_to": _sum_to,
    "free": _free,
}
