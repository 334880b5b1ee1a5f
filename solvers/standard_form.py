"""The problem as the numerics see it: coordinates first, one flat batch last.

A small dense problem is solved by thousands of operations on vectors over the batch. With the batch last these
vectors are contiguous, so every elementwise operation runs at the speed of memory, for any ``L``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from solvers.sums import ordered_sum


@dataclass(frozen=True, eq=False)
class StandardForm:
    """Data of a batch of ``B`` problems with ``L`` coordinates.

    Attributes:
        M: ``(L, L, B)``.
        q: ``(L, B)``.
        lower: ``(L, B)``, or ``None`` where no coordinate of any item has a lower bound, or all have the bound 0.
        upper: ``(L, B)``, or ``None`` where no coordinate of any item has an upper bound.
        l1: ``(L, B)``, or ``None`` where ``|w_i|`` has no kink inside the set. (There the term is linear, part of
            ``q``.)
        linear_l1: ``(L, B)``, the L1 weights that are linear on the set and therefore part of ``q``; kept for the
            checks.
        total: ``(B,)``, or ``None`` for no sum.
        exists: ``(L, B)`` bool, or ``None`` for all. A coordinate that does not exist has both bounds at 0.
        nonnegative: Whether the bounds are ``w ≥ 0`` and nothing else, and a total, if any, is a positive number. In
            this common case ``lower`` is ``None``, and some coordinate is free wherever the sum is tight.
        equality: Whether the sum is ``= total`` or ``≤ total``.
        symmetric: Whether ``M`` is symmetric; ``None`` if nobody said so.
    """

    M: Tensor
    q: Tensor
    lower: Tensor | None = None
    upper: Tensor | None = None
    l1: Tensor | None = None
    linear_l1: Tensor | None = None
    total: Tensor | None = None
    exists: Tensor | None = None
    nonnegative: bool = False
    equality: bool = True
    symmetric: bool | None = None

    @property
    def size(self) -> int:
        """Number of coordinates ``L``."""
        return self.q.shape[0]

    @property
    def batch(self) -> int:
        """Number of problems ``B``."""
        return self.q.shape[-1]

    @property
    def required_total(self) -> Tensor:
        """The total, for those who need one.

        Raises:
            ValueError: If the set has none.
        """
        if self.total is None:
            raise ValueError("this set has no total")
        return self.total

    def operator(self, w: Tensor) -> Tensor:
        """``Mw + q``, shape ``(L, B)``."""
        return ordered_sum(self.M * w, 1) + self.q

    def diagonal(self) -> Tensor:
        """The diagonal of ``M``, shape ``(L, B)``."""
        return self.M.diagonal(dim1=0, dim2=1).T

    def bounds_and_l1(self) -> tuple[Tensor, Tensor, Tensor]:
        """``lower``, ``upper`` and ``l1`` in full, ±inf and 0 where there is none; each ``(L, B)``."""
        inf = torch.full_like(self.q, torch.inf)
        return (
            (torch.zeros_like(inf) if self.nonnegative else -inf) if self.lower is None else self.lower,
            inf if self.upper is None else self.upper,
            torch.zeros_like(inf) if self.l1 is None else self.l1,
        )

    def without_sum(self) -> StandardForm:
        """The same problem without the sum constraint."""
        return replace(self, total=None)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> StandardForm:
        """The same problem with ``function`` applied to every tensor."""
        tensors = (getattr(self, name) for name in TENSORS)
        return StandardForm(
            *(None if tensor is None else function(tensor) for tensor in tensors),  # type: ignore[arg-type]
            nonnegative=self.nonnegative,
            equality=self.equality,
            symmetric=self.symmetric,
        )

    def coordinate(self, i: int) -> StandardForm:
        """The problem of coordinate ``i`` alone, without the sum; its ``q`` still lacks what the others contribute."""
        alone = self.without_sum().map_tensors(lambda tensor: tensor[i : i + 1])
        return replace(alone, M=self.M[i : i + 1, i : i + 1])

    def select(self, items: Tensor) -> StandardForm:
        """The sub-batch with the given indices."""
        return self.map_tensors(lambda tensor: tensor.index_select(-1, items))

    def detach(self) -> StandardForm:
        """The same problem without gradients."""
        return self.map_tensors(torch.Tensor.detach)

    def to(self, dtype: torch.dtype) -> StandardForm:
        """The same problem in another floating point type."""
        return self.map_tensors(lambda tensor: tensor if tensor.dtype == torch.bool else tensor.to(dtype))

    def scaled(self, factor: Tensor) -> StandardForm:
        """``M``, ``q`` and ``l1`` times a positive ``factor`` of shape ``(B,)``: the solutions stay the same."""
        l1 = None if self.l1 is None else self.l1 * factor
        return replace(self, M=self.M * factor, q=self.q * factor, l1=l1)

    def with_known_symmetry(self) -> StandardForm:
        """The same problem with ``symmetric`` set where all items agree."""
        if self.symmetric is not None:
            return self
        symmetric = self.is_symmetric()
        if bool(symmetric.all()):
            return replace(self, symmetric=True)
        return self if bool(symmetric.any()) else replace(self, symmetric=False)

    def is_symmetric(self) -> Tensor:
        """Which items have a symmetric ``M``, up to rounding; ``(B,)`` bool."""
        if self.symmetric is not None:
            return torch.full((self.batch,), self.symmetric, device=self.q.device)
        rounding = 8 * torch.finfo(self.M.dtype).eps
        asymmetry = (self.M - self.M.transpose(0, 1)).abs().amax((0, 1))
        return asymmetry <= rounding * self.M.abs().amax((0, 1))


TENSORS = tuple(f.name for f in fields(StandardForm) if f.name not in ("nonnegative", "equality", "symmetric"))
"""The names of the fields that hold tensors, in order."""


def is_tracing(data: StandardForm | Tensor) -> bool:
    """Whether ``torch.compile``, ``vmap`` or ``make_fx`` is looking, so that no branch may depend on values."""
    if torch.compiler.is_compiling() or _is_recording():
        return True
    return any(_FUNCTORCH.is_batchedtensor(tensor) for tensor in _wrappers(data))


def transform_depth() -> int:
    """How often the weights may have to be differentiated by transforms; 0 where none is on.

    The number of transforms of ``torch.func`` that are nested here, at least 2. Under ``torch.compile``, and where
    ``make_fx`` records, that number is not known, and 3 is returned.
    """
    if torch.compiler.is_compiling() or _is_recording():
        return 3
    stack = _FUNCTORCH.get_interpreter_stack()  # also where none of the data is wrapped, since its derivatives may be
    return max(2, len(stack)) if stack else 0


def _wrappers(data: StandardForm | Tensor) -> list[Tensor]:
    """The tensors in which ``torch.func`` has wrapped the data, of each from the outermost in."""
    found: list[Tensor] = []  # not a generator, which torch.compile cannot resume
    if _FUNCTORCH.peek_interpreter_stack() is None:
        return found
    for tensor in [data] if isinstance(data, Tensor) else [getattr(data, name) for name in TENSORS]:
        while isinstance(tensor, Tensor) and _FUNCTORCH.is_functorch_wrapped_tensor(tensor):
            found.append(tensor)
            tensor = _FUNCTORCH.get_unwrapped(tensor)
    return found


def _is_recording() -> bool:
    """Whether ``make_fx`` records what is done, as ``torch.func.linearize`` lets it."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


_FUNCTORCH: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
