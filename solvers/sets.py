"""Feasible sets: bounds on each weight and, optionally, on their sum.

Every set of this package is ``{w : lower ≤ w ≤ upper, sum(w) = total or sum(w) ≤ total, w_i = 0 where mask_i is
False}``. The named sets only fill in these fields, so that solvers, certificates and gradients are written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Real

from torch import Tensor

Bound = Tensor | float


def check_bound(name: str, value: object) -> None:
    """Raises TypeError, naming the argument, if ``value`` is neither a number nor a tensor."""
    if not isinstance(value, (Tensor, Real)):
        raise TypeError(f"{name} must be a number or a tensor, but got {type(value).__name__}.")


@dataclass(frozen=True, eq=False)
class FeasibleSet:
    """The set ``C`` of a problem, in its general form.

    Attributes:
        lower: Lower bounds, a number or a tensor that broadcasts to ``(*batch, L)``; ``-inf`` for none.
        upper: Upper bounds, likewise; ``inf`` for none.
        total: What the weights sum to, a number or a tensor that broadcasts to ``(*batch,)``; ``None`` for no sum.
        equality: Whether ``sum(w) = total`` (True) or ``sum(w) ≤ total`` (False).
        mask: Boolean ``(*batch, L)``, True where a coordinate exists; the others are held at 0 and their data ignored.

    Bounds and total may require gradients.

    Raises:
        TypeError: If a bound or total is neither a number nor a tensor, or the mask is not a tensor.
        ValueError: If numbers given as bounds leave nothing or are NaN, or a total is not finite.
    """

    lower: Bound = -inf
    upper: Bound = inf
    total: Bound | None = None
    equality: bool = True
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_bound("lower", self.lower)
        check_bound("upper", self.upper)
        if self.total is not None:
            check_bound("total", self.total)
        if self.mask is not None and not isinstance(self.mask, Tensor):
            raise TypeError(f"mask must be a boolean tensor, but got {type(self.mask).__name__}.")
        numbers = not isinstance(self.lower, Tensor) and not isinstance(self.upper, Tensor)
        if numbers and (not self.lower <= self.upper or self.lower == inf or self.upper == -inf):
            raise ValueError(f"lower must be at most upper, but got lower={self.lower} and upper={self.upper}.")
        if self.total is not None and not isinstance(self.total, Tensor) and not abs(self.total) < inf:
            raise ValueError(f"total must be finite, but got {self.total}.")

    @property
    def is_fixed(self) -> bool:
        """Whether the set is given by numbers alone, so that it has been checked for all items already."""
        return not any(isinstance(value, Tensor) for value in (self.lower, self.upper, self.total, self.mask))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lower={self.lower}, upper={self.upper}, total={self.total})"


class Simplex(FeasibleSet):
    """The probability simplex ``{w : w ≥ 0, sum(w) = 1}``."""

    def __init__(self, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=0.0, total=1.0, mask=mask)


class CappedSimplex(FeasibleSet):
    """The simplex with a cap on every weight, ``{w : 0 ≤ w ≤ cap, sum(w) = 1}``."""

    def __init__(self, cap: Bound, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=0.0, upper=cap, total=1.0, mask=mask)


class Box(FeasibleSet):
    """Independent bounds, ``{w : lower ≤ w ≤ upper}``; either side may be infinite, entry by entry."""

    def __init__(self, lower: Bound = 0.0, upper: Bound = 1.0, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=lower, upper=upper, mask=mask)


class NonNegative(FeasibleSet):
    """The non-negative orthant ``{w : w ≥ 0}``."""

    def __init__(self, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=0.0, mask=mask)


class Budget(FeasibleSet):
    """What can be spent at most, ``{w : w ≥ 0, sum(w) ≤ total}``."""

    def __init__(self, total: Bound = 1.0, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=0.0, total=total, equality=False, mask=mask)


class SumTo(FeasibleSet):
    """Signed weights with a fixed sum, ``{w : sum(w) = total}``."""

    def __init__(self, total: Bound = 1.0, *, mask: Tensor | None = None) -> None:
        super().__init__(total=total, mask=mask)


class Free(FeasibleSet):
    """No constraint at all."""

    def __init__(self, *, mask: Tensor | None = None) -> None:
        super().__init__(mask=mask)
