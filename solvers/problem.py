"""The one problem class, as its user states it: an affine variational inequality with a weighted L1 term."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from solvers.sets import Bound, FeasibleSet, Simplex, check_bound, check_set_class
from solvers.standard_form import StandardForm


@dataclass(frozen=True, eq=False)
class AffineVI:
    """Find ``w`` in ``C`` such that ``(Mw + q)·(v − w) + Σ λ_i (|v_i| − |w_i|) ≥ 0`` for all ``v`` in ``C``.

    With ``M`` symmetric positive semidefinite, ``w`` minimises ``½ wᵀMw + qᵀw + Σ λ_i |w_i|`` over ``C``. With
    ``½(M + Mᵀ)`` positive definite, ``w`` is the unique (variational) Nash equilibrium of the game in which player i
    chooses ``w_i`` at marginal cost ``(Mw + q)_i + λ_i ∂|w_i|``.

    On the simplex a ``l1`` that is the same for all coordinates changes nothing, because ``Σ|w_i| = 1`` is a constant:
    neither the solution nor any other gradient depends on it. It acts where it differs per coordinate, or on other
    sets.

    Attributes:
        M: Coupling, ``(*batch, L, L)``.
        q: Linear term, ``(*batch, L)``.
        feasible: The set ``C``; the simplex if omitted.
        l1: Weights ``λ ≥ 0`` of the L1 term, a number or a tensor that broadcasts to ``(*batch, L)``.
        symmetric: Whether ``M`` is symmetric. ``None`` asks each item of the batch; say it where you know it and want
            an unrolled solver under ``torch.compile`` or ``torch.func.vmap``.
        batch_shape: The batch dimensions that all arguments broadcast to (not an argument).

    Batch dimensions of all arguments broadcast; there may be none, and a batch may be empty. float32 and float64 are
    computed as they are, float16 and bfloat16 in float32. All have one type, except under autocast, which casts some
    tensors and leaves others: there they promote as torch promotes them.

    Raises:
        TypeError: If ``M`` or ``q`` is not a floating point tensor, ``l1`` neither a number nor a tensor, or the class
            of ``feasible`` unknown (see `register_set`).
        ValueError: If shapes, dtypes or devices do not match. The message names the argument.
    """

    M: Tensor
    q: Tensor
    feasible: FeasibleSet = None  # pyright: ignore[reportAssignmentType]
    l1: Bound = 0.0
    symmetric: bool | None = None
    batch_shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        for name, tensor in (("M", self.M), ("q", self.q)):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise TypeError(f"{name} must be a floating point tensor, but got {_describe(tensor)}.")
        if self.feasible is None:  # not a default factory, which torch.compile cannot trace
            object.__setattr__(self, "feasible", Simplex())
        check_set_class(self.feasible)
        if self.q.ndim < 1 or self.q.shape[-1] < 1:
            raise ValueError(f"q must have shape (*batch, L) with L ≥ 1, but has shape {tuple(self.q.shape)}.")
        L = self.q.shape[-1]
        if self.M.ndim < 2 or self.M.shape[-2:] != (L, L):
            raise ValueError(
                f"M must have shape (*batch, {L}, {L}) to match q of shape {tuple(self.q.shape)}, "
                f"but has shape {tuple(self.M.shape)}."
            )
        check_bound("l1", self.l1)
        for name, tensor in self._tensors().items():
            if tensor.device != self.q.device:
                raise ValueError(f"{name} is on {tensor.device}, but q is on {self.q.device}.")
            if name != "mask" and tensor.dtype != self.q.dtype and not self._may_promote(tensor):
                raise ValueError(f"{name} has dtype {tensor.dtype}, but q has dtype {self.q.dtype}.")
        mask = self.feasible.mask
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean, but has dtype {mask.dtype}.")
        if not isinstance(self.l1, Tensor) and not 0 <= self.l1 < float("inf"):
            raise ValueError(f"l1 must be non-negative and finite, but got {self.l1}.")
        self._check_reach(L)
        object.__setattr__(self, "batch_shape", self._broadcast_batch())

    @property
    def size(self) -> int:
        """Number of coordinates ``L``."""
        return self.q.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type of the weights: that of ``q``, or what all types promote to under autocast."""
        dtype = self.q.dtype
        for name, tensor in self._tensors().items():
            dtype = dtype if name == "mask" else torch.promote_types(dtype, tensor.dtype)
        return dtype

    def standard(self) -> StandardForm:
        """The problem in the coordinate-first form that the numerics work on, connected to the arguments' gradients."""
        batch, L = self.batch_shape, self.size
        dtype = torch.promote_types(self.dtype, torch.float32)
        C = self.feasible

        def over_batch(value: Bound, *trailing: int) -> Tensor:
            if not isinstance(value, Tensor):
                return self.q.new_full((*trailing, batch.numel()), value, dtype=dtype)
            value = value if value.dtype == torch.bool else value.to(dtype)
            return value.expand((*batch, *trailing)).reshape(batch.numel(), *trailing).movedim(0, -1).contiguous()

        M, q = over_batch(self.M, L, L), over_batch(self.q, L)
        nonnegative = C.mask is None and _is_number(C.lower, 0.0) and _is_number(C.upper, float("inf"))
        nonnegative = nonnegative and (C.total is None or (not isinstance(C.total, Tensor) and C.total > 0))
        lower = None if nonnegative or _is_number(C.lower, float("-inf")) else over_batch(C.lower, L)
        upper = None if _is_number(C.upper, float("inf")) else over_batch(C.upper, L)
        l1 = None if _is_number(self.l1, 0.0) else over_batch(self.l1, L)
        exists = None
        if C.mask is not None:
            exists = over_batch(C.mask, L)
            M = M.where(exists.unsqueeze(1) & exists.unsqueeze(0), 0.0)
            q = q.where(exists, 0.0)
            lower = over_batch(C.lower, L).where(exists, 0.0)
            upper = over_batch(C.upper, L).where(exists, 0.0)
            l1 = None if l1 is None else l1.where(exists, 0.0)
        sign, linear_l1 = self._sign_on_set(), None
        if l1 is not None and sign:  # λ|w| = ±λw on all of C
            q, l1, linear_l1 = q + sign * l1, None, l1
        return StandardForm(
            M=M,
            q=q,
            lower=lower,
            upper=upper,
            l1=l1,
            linear_l1=linear_l1,
            total=None if C.total is None else over_batch(C.total),
            exists=exists,
            nonnegative=nonnegative,
            equality=C.equality,
            symmetric=self.symmetric,
        )

    def from_standard(self, x: Tensor) -> Tensor:
        """Brings a coordinate-first ``(L, B)`` or per-item ``(B,)`` result back to ``(*batch, L)`` or ``(*batch,)``."""
        if x.ndim == 2:
            return x.movedim(0, -1).reshape((*self.batch_shape, self.size))
        return x.reshape(self.batch_shape)

    def _may_promote(self, tensor: Tensor) -> bool:
        """Whether autocast is on, which casts some tensors and leaves others."""
        return tensor.is_floating_point() and torch.is_autocast_enabled(self.q.device.type)

    def _broadcast_batch(self) -> torch.Size:
        batch = torch.Size(())
        for name, tensor in self._tensors().items():
            own = tensor.shape[: -2 if name == "M" else None if name == "total" else -1]
            if name not in ("M", "total") and tensor.ndim and tensor.shape[-1] not in (1, self.size):
                raise ValueError(
                    f"{name} must broadcast to (*batch, {self.size}), but has shape {tuple(tensor.shape)}."
                )
            try:
                batch = own if own == batch or not batch else torch.broadcast_shapes(batch, own)
            except RuntimeError:
                raise ValueError(
                    f"{name} has batch dimensions {tuple(own)}, which do not broadcast with {tuple(batch)}."
                ) from None
        return batch

    def _sign_on_set(self) -> int:
        """1 if the set holds no negative weight, -1 if no positive one, 0 if it may hold both."""
        C = self.feasible
        if not isinstance(C.lower, Tensor) and C.lower >= 0:
            return 1
        return -1 if not isinstance(C.upper, Tensor) and C.upper <= 0 else 0

    def _tensors(self) -> dict[str, Tensor]:
        C = self.feasible
        named = {
            "M": self.M,
            "q": self.q,
            "l1": self.l1,
            "lower": C.lower,
            "upper": C.upper,
            "total": C.total,
            "mask": C.mask,
        }
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def _check_reach(self, L: int) -> None:
        C = self.feasible
        if C.total is None or any(isinstance(value, Tensor) for value in (C.lower, C.upper, C.total)):
            return  # tensors are checked item by item when the problem is solved
        least, most, slack = L * C.lower, L * C.upper, 1e-6 * abs(C.total)
        if C.total < least - slack or (C.equality and C.total > most + slack):
            raise ValueError(
                f"total={C.total} is out of reach: {L} weights between lower={C.lower} and upper={C.upper} "
                f"sum to between {least} and {most}."
            )


def _is_number(value: Bound, number: float) -> bool:
    return not isinstance(value, Tensor) and value == number


def _describe(value: object) -> str:
    return f"a tensor of dtype {value.dtype}" if isinstance(value, Tensor) else f"{type(value).__name__}"
