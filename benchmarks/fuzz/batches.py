"""A batch of problems as a user states it, with what is known of it by construction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from solvers import AffineVI, Box, Budget, CappedSimplex, FeasibleSet, Free, NonNegative, Simplex, SumTo

Array = np.ndarray
Value = Tensor | float


class Truth(IntEnum):
    """What is known of an item before anyone solves it."""

    SOLVABLE = 0  # monotone, and there is a solution
    OPEN = 1  # a game that is not monotone, or monotone within rounding only: whatever is called solved must be
    NOT_MONOTONE = 2
    UNBOUNDED = 3
    INFEASIBLE = 4
    FAULTY = 5


@dataclass(frozen=True)
class Batch:
    """Problems of one size on one set, with a leading batch dimension throughout.

    Attributes:
        family: How ``M`` and ``q`` were made.
        set_name: The set, as in `benchmarks.fuzz.sets`.
        M: ``(B, L, L)``; ``q``: ``(B, L)``; both in the dtype that is tested.
        l1: A number or ``(B, L)``.
        lower: A number or ``(B, L)``, like ``upper``; ``total`` a number, ``(B,)`` or ``None``.
        mask: ``(B, L)`` bool or ``None``.
        truth: ``(B,)``, of `Truth`.
        reach: ``(B,)``, how large a solution may be, in weight units; an answer beyond it has run away.
        least: ``(B,)``, the least eigenvalue of the symmetric part, in its units, where known and positive, else 0.
        weight_unit: ``(B, L)``, the unit of each weight; ``force_unit``, of each entry of ``Mw + q``.
        cotangent: ``(B, L)``, in the dtype that is tested: what the weights are differentiated against.
    """

    family: str
    set_name: str
    M: Tensor
    q: Tensor
    l1: Value
    lower: Value
    upper: Value
    total: Value | None
    equality: bool
    mask: Tensor | None
    truth: Array
    reach: Array
    least: Array
    weight_unit: Array
    force_unit: Array
    cotangent: Tensor

    @property
    def count(self) -> int:
        """Number of problems."""
        return self.q.shape[0]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.q.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that is tested."""
        return self.q.dtype

    def select(self, items: Array) -> Batch:
        """The items at the given indices, in that order."""
        changed = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                changed[name] = value[torch.from_numpy(np.asarray(items))]
            elif isinstance(value, np.ndarray):
                changed[name] = value[items]
        return replace(self, **changed)

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor that a user can differentiate in."""
        named = {name: getattr(self, name) for name in ("M", "q", "l1", "lower", "upper", "total")}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def problem(self, leaves: dict[str, Tensor]) -> AffineVI:
        """The problem, its tensors replaced by ``leaves``."""
        stated = vars(self) | leaves
        bounds = (stated["lower"], stated["upper"], stated["total"])
        feasible = _feasible(self.set_name, *bounds, self.equality, self.mask)
        return AffineVI(stated["M"], stated["q"], feasible, l1=stated["l1"])


def _feasible(
    name: str, lower: Value, upper: Value, total: Value | None, equality: bool, mask: Tensor | None
) -> FeasibleSet:
    """The named set where its fields are those of the name, or else the general one."""
    inf, positive = float("inf"), _is(lower, 0.0)
    simplex = positive and equality and _is(total, 1.0)
    if name == "Simplex" and simplex and _is(upper, inf):
        return Simplex(mask=mask)
    if name == "CappedSimplex" and simplex:
        return CappedSimplex(upper, mask=mask)
    if name == "NonNegative" and positive and _is(upper, inf):
        return NonNegative(mask=mask)
    if name == "Budget" and positive and _is(upper, inf) and total is not None:
        return Budget(total, mask=mask)
    if name == "SumTo" and _is(lower, -inf) and _is(upper, inf) and total is not None:
        return SumTo(total, mask=mask)
    if name == "Free" and _is(lower, -inf) and _is(upper, inf):
        return Free(mask=mask)
    if total is None:
        return Box(lower, upper, mask=mask)
    return FeasibleSet(lower, upper, total, equality, mask)


def _is(value: Value | None, number: float) -> bool:
    return isinstance(value, float) and value == number


@dataclass(frozen=True)
class Exact:
    """The same problems in extended precision and in the units of each weight, masked coordinates held at 0.

    Attributes:
        M: ``(B, L, L)``; ``q``, ``l1``, ``lower``, ``upper`` and ``cotangent``: ``(B, L)``; all ``longdouble``.
        total: ``(B,)`` or ``None``.
        equality: Whether the sum is fixed.
        exists: ``(B, L)`` bool.
        reach: ``(B,)``.
        eps: Rounding of the dtype that is tested.
    """

    M: Array
    q: Array
    l1: Array
    lower: Array
    upper: Array
    total: Array | None
    equality: bool
    exists: Array
    reach: Array
    cotangent: Array
    eps: float

    def select(self, items: Array) -> Exact:
        """The items at the given indices."""
        changed = {name: value[items] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **changed)


def extended(value: object, *shape: int) -> Array:
    """A tensor, an array or a number in extended precision, in the given shape."""
    array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return np.broadcast_to(array.astype(np.longdouble), shape)


def exact(batch: Batch) -> Exact:
    """A batch as the oracles see it: what was given, not what was meant."""
    B, L = batch.count, batch.size
    exists = np.ones((B, L), bool) if batch.mask is None else batch.mask.numpy()
    weight, force = batch.weight_unit.astype(np.longdouble), batch.force_unit.astype(np.longdouble)
    with np.errstate(invalid="ignore"):
        M = extended(batch.M, B, L, L) * weight[:, None, :] / force[:, :, None]
        bounds = [extended(bound, B, L) / weight for bound in (batch.lower, batch.upper)]
        total = None if batch.total is None else extended(batch.total, B) / weight[:, 0]
        q, l1 = extended(batch.q, B, L) / force, extended(batch.l1, B, L) / force
    return Exact(
        M=np.where(exists[:, :, None] & exists[:, None, :], M, 0),
        q=np.where(exists, q, 0),
        l1=np.where(exists, l1, 0),
        lower=np.where(exists, bounds[0], 0),
        upper=np.where(exists, bounds[1], 0),
        total=total,
        equality=batch.equality,
        exists=exists,
        reach=batch.reach.astype(np.longdouble),
        cotangent=extended(batch.cotangent, B, L) * weight,
        eps=torch.finfo(batch.dtype).eps,
    )
