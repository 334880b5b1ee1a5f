"""Feasible sets: bounds on each weight and, optionally, on their sum.

Every set of this package is ``{w : lower ≤ w ≤ upper, sum(w) = total or sum(w) ≤ total, w_i = 0 where mask_i is
False}``. The named sets only fill in these fields, so that solvers, certificates and gradients are written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import TypeVar

from torch import Tensor

Bound = Tensor | float
SetClass = TypeVar("SetClass", bound="FeasibleSet")

_KNOWN: set[type] = set()


def register_set(cls: type[SetClass]) -> type[SetClass]:
    """Declares that a subclass of `FeasibleSet` is described by the fields of `FeasibleSet` and nothing else.

    Solvers know those fields only, so a problem refuses a set of any other class: a constraint of its own would be
    ignored. Usable as a decorator. A function that returns a `FeasibleSet` needs no registration.

    >>> from solvers import FeasibleSet, register_set
    >>> @register_set
    ... class AtMost(FeasibleSet):
    ...     def __init__(self, cap):
    ...         super().__init__(upper=cap)

    Args:
        cls: A subclass of `FeasibleSet` that only fills in its fields.

    Raises:
        TypeError: If it is not a subclass of `FeasibleSet`.
    """
    if not (isinstance(cls, type) and issubclass(cls, FeasibleSet)):
        raise TypeError(f"register_set takes a subclass of FeasibleSet, but got {cls!r}.")
    _KNOWN.add(cls)
    return cls


def check_set_class(feasible: object) -> None:
    """Raises TypeError unless ``feasible`` is a set whose class is described by the fields of `FeasibleSet`."""
    if not isinstance(feasible, FeasibleSet):
        raise TypeError(f"feasible must be a set such as Simplex(), but got {feasible!r}.")
    if type(feasible) is not FeasibleSet and type(feasible) not in _KNOWN:
        raise TypeError(
            f"feasible is of the class {type(feasible).__name__}, of which solvers know only the fields of "
            "FeasibleSet; if it is nothing but them, declare it with solvers.register_set, or return a FeasibleSet "
            "from a function."
        )


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


@register_set
class Simplex(FeasibleSet):
    """The probability simplex ``{w : w ≥ 0, sum(w) = 1}``."""

    def __init__(self, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=0.0, total=1.0, mask=mask)


@register_set
class CappedSimplex(FeasibleSet):
    """The simplex with a cap on every weight, ``{w : 0 ≤ w ≤ cap, sum(w) = 1}``."""

    def __init__(self, cap: Bound, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=0.0, upper=cap, total=1.0, mask=mask)


@register_set
class Box(FeasibleSet):
    """Independent bounds, ``{w : lower ≤ w ≤ upper}``; either side may be infinite, entry by entry."""

    def __init__(self, lower: Bound = 0.0, upper: Bound = 1.0, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=lower, upper=upper, mask=mask)


@register_set
class NonNegative(FeasibleSet):
    """The non-negative orthant ``{w : w ≥ 0}``."""

    def __init__(self, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=0.0, mask=mask)


@register_set
class Budget(FeasibleSet):
    """What can be spent at most, ``{w : w ≥ 0, sum(w) ≤ total}``."""

    def __init__(self, total: Bound = 1.0, *, mask: Tensor | None = None) -> None:
        super().__init__(lower=0.0, total=total, equality=False, mask=mask)


@register_set
class SumTo(FeasibleSet):
    """Signed weights with a fixed sum, ``{w : sum(w) = total}``."""

    def __init__(self, total: Bound = 1.0, *, mask: Tensor | None = None) -> None:
        super().__init__(total=total, mask=mask)


@register_set
class Free(FeasibleSet):
    """No constraint at all."""

    def __init__(self, *, mask: Tensor | None = None) -> None:
        super().__init__(mask=mask)
