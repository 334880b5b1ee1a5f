"""Feasible sets for an aggregation: by name, with a total that learns, and restricted to the scales that exist."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from solvers import Box, Budget, CappedSimplex, FeasibleSet, Free, NonNegative, Simplex, SumTo

SetLike = str | FeasibleSet | Callable[[Tensor | None], FeasibleSet]

_SETS: dict[str, type[FeasibleSet]] = {
    "simplex": Simplex,
    "capped_simplex": CappedSimplex,
    "box": Box,
    "budget": Budget,
    "nonnegative": NonNegative,
    "sum_to": SumTo,
    "free": Free,
}


def available_sets() -> tuple[str, ...]:
    """The names that `make_set` takes.

    >>> available_sets()[:2]
    ('simplex', 'capped_simplex')
    """
    return tuple(_SETS)


def make_set(
    feasible: SetLike, options: Mapping[str, object] | None = None
) -> FeasibleSet | Callable[[Tensor | None], FeasibleSet]:
    """A feasible set, or what makes one from the mask of the scales that exist.

    >>> make_set("capped_simplex", {"cap": 0.5})
    CappedSimplex(lower=0.0, upper=0.5, total=1.0)

    Args:
        feasible: A name; or a set; or a function, or module with parameters of its own, from a mask (..., L) bool or
            None to a set.
        options: Arguments of the named set: `cap` of "capped_simplex"; `lower` and `upper` of "box"; `total` of
            "budget" and "sum_to", and `learn_total=True` to make it a parameter that starts there.

    Raises:
        TypeError: `feasible` is none of these, or the set does not take the options.
        ValueError: There is no set of that name, or an option has a value that leaves nothing.
    """
    options = dict(options or {})
    if not isinstance(feasible, str):
        if options:
            raise TypeError(f"feasible_options belong to a set given by its name, but feasible is {feasible!r}.")
        if isinstance(feasible, FeasibleSet) or callable(feasible):
            return feasible
        raise TypeError(f"feasible must be a name, a set or a function that makes one, but got {feasible!r}.")
    if feasible not in _SETS:
        raise ValueError(f"feasible must be one of {', '.join(map(repr, _SETS))}, but got {feasible!r}.")
    named, learned = _SETS[feasible], options.pop("learn_total", False)
    if learned and named not in (Budget, SumTo):
        raise TypeError(f"feasible={feasible!r} has no total to learn; 'budget' and 'sum_to' have.")
    try:
        return LearnedTotal(named, **options) if learned else named(**options)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise TypeError(f"feasible={feasible!r} does not take the options {options}: {error}.") from None


class LearnedTotal(nn.Module):
    """A `Budget` or `SumTo` whose total is a parameter; that of a budget stays positive.

    Args:
        named: `Budget` or `SumTo`.
        total: Where the total starts.

    Raises:
        ValueError: `total` is not finite, or not positive for a budget.
    """

    def __init__(self, named: type[FeasibleSet], total: float = 1.0) -> None:
        super().__init__()
        positive = named is Budget
        if not math.isfinite(total) or (positive and total <= 0):
            raise ValueError(f"total must be finite{' and positive' if positive else ''}, but got {total}.")
        self.named = named
        self.raw_total = nn.Parameter(torch.tensor(inverse_softplus(total) if positive else float(total)))

    @property
    def total(self) -> Tensor:
        """The total, a scalar, in at least float32."""
        raw = self.raw_total.to(torch.promote_types(self.raw_total.dtype, torch.float32))
        return softplus(raw) if self.named is Budget else raw

    def forward(self, mask: Tensor | None = None) -> FeasibleSet:
        """The set over the scales that exist."""
        return self.named(self.total, mask=mask)  # pyright: ignore[reportCallIssue]

    def extra_repr(self) -> str:
        """The set and its total."""
        total = "unknown" if self.raw_total.is_meta else f"{self.total.item():.4g}"
        return f"{self.named.__name__}, total={total}"


def inverse_softplus(value: float) -> float:
    """`x` with `log(1 + exp(x)) = value > 0`."""
    return value + math.log(-math.expm1(-value))


def restrict(feasible: FeasibleSet, available: Tensor | None, dtype: torch.dtype) -> FeasibleSet:
    """The set over the scales that exist; weights of the others are held at 0.

    A `CappedSimplex` is empty where fewer than `1/cap` scales exist; there its cap is lifted to
    `1/(number of scales that exist)`, which leaves equal weights.

    Args:
        feasible: The set over all scales; a mask of its own stays in force.
        available: (*batch, L) bool, True where a scale exists; None: all do.
        dtype: Type of the problem; bounds and totals that are tensors are brought to it, keeping their gradients.
    """
    mask = feasible.mask
    if available is not None:
        mask = available if mask is None else mask & available
    restricted = copy.copy(feasible)  # keeps the class, whose name stands in error messages
    object.__setattr__(restricted, "mask", mask)
    for name in ("lower", "upper", "total"):
        value = getattr(feasible, name)
        if name == "upper" and mask is not None and isinstance(feasible, CappedSimplex):
            least = mask.sum(-1, keepdim=True).clamp(min=1).to(dtype).reciprocal()
            value = torch.maximum(least, torch.as_tensor(value, dtype=dtype, device=mask.device))
        object.__setattr__(restricted, name, value.to(dtype) if isinstance(value, Tensor) else value)
    return restricted
