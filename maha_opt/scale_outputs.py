"""Scale outputs `Y` as a problem reads them: checked, in full precision, zero where nothing exists; and `G = YYᵀ/d`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def gram(Y: Tensor, mask: Tensor | None = None) -> Tensor:
    """`G = YYᵀ/d`.

    >>> gram(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    tensor([[1., 1.],
            [1., 2.]])

    Args:
        Y: (..., L, d), floating point.
        mask: (..., L) bool; rows where it is False count as zero, whatever they hold. None: all rows count.

    Returns:
        (..., L, L), in at least float32.

    Raises:
        TypeError: `Y` is not floating point, or `mask` is not boolean.
        ValueError: A shape does not fit; the message names the argument.
    """
    if mask is not None:
        check_mask("mask", mask, Y.shape[:-1])
    Y = checked_outputs(Y)
    with full_precision(Y):
        return gram_of(Y if mask is None else torch.where(mask.unsqueeze(-1), Y, 0.0))


def of_unit_size(Y: Tensor) -> Tensor:
    """Scale outputs (..., d) divided by their root mean square of any size; zero stays zero, with a zero gradient."""
    Y = Y * power_of_two(Y, (-1,))  # so that no square leaves the range of the type
    square = Y.square().mean(-1, keepdim=True)
    there = square > 0
    return Y * torch.where(there, torch.where(there, square, 1.0).rsqrt(), 0.0)


def power_of_two(Y: Tensor, over: tuple[int, ...], within: int = 0) -> Tensor:
    """Powers of two that bring `max |Y|`, over some dimensions that are kept, into `[2^(−within−1), 2^within)`.

    1 where it lies there already, is zero or not finite. Without a gradient; a product with them does not round.
    """
    if not Y.numel():
        return Y.new_ones([1 if dim - Y.ndim in over else size for dim, size in enumerate(Y.shape)])
    with torch.no_grad():
        largest = torch.maximum(Y.amax(over, keepdim=True), -Y.amin(over, keepdim=True))  # ten times as fast as a norm
        exponent = torch.frexp(largest).exponent
        most = exponent_range(Y.dtype) - 3  # the power itself has to be a normal number
        shift = (exponent.clamp(-within, within) - exponent).clamp(-most, most)
        unit = torch.ldexp(torch.ones_like(largest), shift)
        return torch.where((largest > 0) & largest.isfinite(), unit, 1.0)


def exponent_range(dtype: torch.dtype) -> int:
    """The `e` up to which `2^e` and `2^−e` are numbers of a floating point type, but for one or two."""
    return round(math.log2(torch.finfo(dtype).max))


def is_of_no_common_size(power: Tensor) -> Tensor:
    """Whether a mean square of scale outputs is zero, or so small or large that its square may leave the range."""
    limit = 2.0 ** (2 * _common(power.dtype))
    return ~((power >= 1 / limit) & (power <= limit))


def in_common_units(
    outputs: ScaleOutputs, target: Tensor | None, where: Tensor | None
) -> tuple[ScaleOutputs, Tensor | None]:
    """Scale outputs and target of each problem times a power of two, so that products of four are in the type's range.

    Ridge and prices are relative, so that the weights of a problem are the same in all units, and its derivatives are
    those in the units that were given.

    Args:
        outputs: As `real_part` returns them.
        target: (..., d), or (..., n, d) with tokens; None: there is none.
        where: (...) bool, which problems are to change; None: all whose outputs are of no common size.
    """
    over = (-2, -1) if outputs.tokens is None else (-3, -2, -1)
    unit = power_of_two(outputs.Y, over, _common(outputs.Y.dtype))
    if where is not None:
        unit = torch.where(where.reshape(unit.shape), unit, 1.0)
    scaled = None if target is None else target.to(outputs.Y.dtype) * unit[..., 0]
    return outputs._replace(Y=outputs.Y * unit), scaled


def _common(dtype: torch.dtype) -> int:
    """Binary exponent up to which sizes are common: an eighth of the type's range."""
    return exponent_range(dtype) // 8


class ScaleOutputs(NamedTuple):
    """What the problems of an aggregation are made of, see `real_part`.

    Attributes:
        Y: (..., L, d), or (..., n, L, d) with `tokens`; float32 or float64, zero where nothing exists.
        available: (..., L) bool, which scales exist for each problem; None: all do.
        tokens: (..., n) bool, the real tokens that share a problem; None: there is a problem for each.
    """

    Y: Tensor
    available: Tensor | None
    tokens: Tensor | None


def real_part(Y: Tensor, available: Tensor | None, tokens: Tensor | None, *, cleared: bool = False) -> ScaleOutputs:
    """Checks scale outputs and clears what does not exist.

    Args:
        Y: (..., L, d), or (..., n, L, d) with `tokens`; floating point.
        available: as `Y` without d, bool; None: all scales exist.
        tokens: (..., n) bool, True where a token is real; None: every token is a problem of its own.
        cleared: Whether `Y` is zero there already, which saves a copy of it.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has the wrong shape; the message names it.
    """
    Y = checked_outputs(Y)
    exists = None
    if available is not None:
        check_mask("available", available, Y.shape[:-1])
        exists = available
    if tokens is not None:
        if Y.ndim < 3:
            raise ValueError(f"Y must have shape (..., n, L, d) where tokens are given, but has {tuple(Y.shape)}.")
        check_mask("tokens", tokens, Y.shape[:-2])
        real = tokens.unsqueeze(-1)
        exists = real if exists is None else exists & real
        if available is not None:  # where no token is real the problem is a dummy, but not an empty one
            available = exists.any(-2) | ~tokens.any(-1, keepdim=True)
    if exists is not None and not cleared:  # not multiplied by 0: NaN would come back in the gradient of the neighbours
        Y = torch.where(exists.unsqueeze(-1), Y, 0.0)
    return ScaleOutputs(Y, available, tokens)


def token_mean(values: Tensor, tokens: Tensor | None, *, trailing: int) -> Tensor:
    """Mean over the real tokens of (..., n, *trailing) values, which are zero at the others."""
    if tokens is None:
        return values
    count = tokens.sum(-1).clamp(min=1).to(values.dtype)
    return values.sum(-1 - trailing) / count.reshape(*count.shape, *([1] * trailing))


def gram_of(Y: Tensor) -> Tensor:
    """`G = YYᵀ/d` of outputs that have been checked."""
    return _Gram.apply(Y)  # pyright: ignore[reportReturnType]


def gram_and_scores_of(Y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`G = YYᵀ/d` and `Yt/d` of outputs (..., L, d) and a target (..., d) that have been checked."""
    target = target.expand(*Y.shape[:-2], Y.shape[-1])
    return _GramAndScores.apply(Y, target)  # pyright: ignore[reportReturnType]


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which autocast leaves the types on the device of a tensor as they are."""
    device = like.device.type
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def checked_outputs(Y: Tensor) -> Tensor:
    """`Y` in at least float32.

    Raises:
        TypeError: It is not a floating point tensor.
        ValueError: It has not at least one scale and one channel.
    """
    if not isinstance(Y, Tensor) or not Y.is_floating_point():
        raise TypeError(f"Y must be a floating point tensor, but got {describe(Y)}.")
    if Y.ndim < 2 or 0 in Y.shape[-2:]:
        raise ValueError(f"Y must have shape (..., L, d) with L, d ≥ 1, but has {tuple(Y.shape)}.")
    return Y.to(torch.promote_types(Y.dtype, torch.float32))


def check_mask(name: str, mask: Tensor, shape: Sequence[int]) -> None:
    """Raises TypeError or ValueError unless a mask is boolean and broadcasts to a shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a boolean tensor, but got {describe(mask)}.")
    check_shape(name, mask, shape)


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError unless a tensor broadcasts to a shape, and has its last dimension already."""
    own, shape = tuple(tensor.shape), tuple(shape)
    fits = len(own) <= len(shape) and own[-1:] == shape[-1:]
    if not fits or any(mine not in (1, wanted) for mine, wanted in zip(own[::-1], shape[::-1], strict=False)):
        raise ValueError(f"{name} must have shape {shape} or broadcast to it, but has {own}.")


def check_exact(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError unless a tensor has a shape."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, but has {tuple(tensor.shape)}.")


def describe(value: object) -> str:
    """The type of a value, in the words of an error message."""
    return f"a tensor of dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


# Automatic differentiation would make more passes over Y, which cost more than the solve. Cotangents come from solvers
# that put the batch last: made contiguous, or a batched product on a CPU is done item by item.


class _Gram(torch.autograd.Function):
    """`G = YYᵀ/d`, with the derivative `(g + gᵀ)Y/d`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(Y: Tensor) -> Tensor:
        return Y @ Y.mT / Y.shape[-1]

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: FunctionCtx, *cotangents: Tensor) -> Tensor:
        (g,), (Y,) = cotangents, ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        return ((g + g.mT) / Y.shape[-1]).contiguous() @ Y


class _GramAndScores(torch.autograd.Function):
    """`G = YYᵀ/d` and `s = Yt/d`, with the derivatives `((g + gᵀ)Y + h tᵀ)/d` and `Yᵀh/d`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(Y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return Y @ Y.mT / Y.shape[-1], (Y @ target.unsqueeze(-1)).squeeze(-1) / Y.shape[-1]

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: FunctionCtx, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        Y, target = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        g, h = ((cotangent / Y.shape[-1]).contiguous() for cotangent in cotangents)
        d_outputs = torch.addcmul((g + g.mT) @ Y, h.unsqueeze(-1), target.unsqueeze(-2))
        return d_outputs, (h.unsqueeze(-2) @ Y).squeeze(-2)
