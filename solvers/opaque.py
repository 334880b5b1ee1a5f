"""The three steps of a solve that look at values, as operators that torch need not look into.

A solver stops when its numbers say so, which neither ``torch.compile`` nor ``torch.func.vmap`` can trace. Under either
these steps run as custom operators (`torch.library`), whose shapes are known and whose inside stays eager; without,
they are plain calls. They see no gradients: those are attached afterwards.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from solvers.checks import find_faults, looks_sound, report
from solvers.registry import make_solver
from solvers.standard_form import TENSORS, StandardForm, is_tracing

CHUNK_BYTES = 2**21
"""Size of ``M`` in a piece of the batch that is worked on at once on a CPU: about a core's second-level cache."""


class ConvergenceError(RuntimeError):
    """An answer did not reach its tolerance, and the caller asked to be stopped by that."""


def inspect(
    problem: StandardForm, fixed_set: bool, batch_shape: list[int], on_failure: str, check_monotone: bool
) -> Tensor | None:
    """Which items have sound data, ``(B,)`` bool, or ``None`` for all; raises or warns about the others.

    ``fixed_set`` says that the set is known to be sound.
    """
    if not check_monotone and not is_tracing(problem) and looks_sound(problem, fixed_set):
        return None
    return _call(_inspect, problem, batch_shape, on_failure, check_monotone)


def run(
    problem: StandardForm, solver: str, options: dict[str, object], tol: float, max_iter: int | None
) -> tuple[Tensor, Tensor]:
    """Weights ``(L, B)`` and iterations ``(B,)`` of a solver, without gradients."""
    return _call(_run, problem, solver, repr(options), tol, max_iter)


def judge(residual: Tensor, tolerance: Tensor, tol: float, batch_shape: list[int], on_failure: str) -> Tensor:
    """Which items have a residual within its tolerance, ``(B,)`` bool; raises or warns about the others."""
    function = _judge if is_tracing(residual) else _judge._init_fn
    return function(residual, tolerance, tol, batch_shape, on_failure)


def _call(operator: Any, problem: StandardForm, *arguments: object) -> Any:
    data = [getattr(problem, name) for name in TENSORS]
    data = [tensor.detach() if isinstance(tensor, Tensor) and tensor.requires_grad else tensor for tensor in data]
    function = operator if is_tracing(problem) else operator._init_fn
    return function(*data, problem.nonnegative, problem.equality, problem.symmetric, *arguments)


def _chunks(problem: StandardForm) -> Iterator[tuple[slice, StandardForm]]:
    """The problem in contiguous pieces that fit the cache, or in one piece where it fits or there is no such cache."""
    B = problem.batch
    item = problem.size**2 * problem.q.element_size()
    size = max(CHUNK_BYTES // item, 1) if problem.q.device.type == "cpu" else B
    if size >= B:
        yield slice(None), problem
        return
    for start in range(0, B, size):
        items = slice(start, start + size)
        yield items, problem.map_tensors(lambda tensor, items=items: tensor[..., items].contiguous())


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


@torch.library.custom_op("maha_solvers::inspect", mutates_args=())
def _inspect(
    M: Tensor,
    q: Tensor,
    lower: Tensor | None,
    upper: Tensor | None,
    l1: Tensor | None,
    linear_l1: Tensor | None,
    total: Tensor | None,
    exists: Tensor | None,
    nonnegative: bool,
    equality: bool,
    symmetric: bool | None,
    batch_shape: list[int],
    on_failure: str,
    check_monotone: bool,
) -> Tensor:
    problem = StandardForm(M, q, lower, upper, l1, linear_l1, total, exists, nonnegative, equality, symmetric)
    faults = find_faults(problem, monotone=check_monotone)
    bad = torch.stack([items for _, items in faults]).any(0)
    if bool(bad.any()):
        nothing_left = bool(bad.all()) and on_failure == "warn"
        report(faults, batch_shape, "raise" if nothing_left else on_failure, ValueError)
    return ~bad


@torch.library.custom_op("maha_solvers::run", mutates_args=())
def _run(
    M: Tensor,
    q: Tensor,
    lower: Tensor | None,
    upper: Tensor | None,
    l1: Tensor | None,
    linear_l1: Tensor | None,
    total: Tensor | None,
    exists: Tensor | None,
    nonnegative: bool,
    equality: bool,
    symmetric: bool | None,
    solver: str,
    options: str,
    tol: float,
    max_iter: int | None,
) -> tuple[Tensor, Tensor]:
    problem = StandardForm(M, q, lower, upper, l1, linear_l1, total, exists, nonnegative, equality, symmetric)
    method = make_solver(solver, ast.literal_eval(options))
    if problem.batch == 0:
        return torch.zeros_like(q), torch.zeros(0, dtype=torch.long, device=q.device)
    with torch.no_grad():
        parts = [method(chunk, tol, max_iter) for _, chunk in _chunks(problem)]
    w, iterations = (_joined(column) for column in zip(*parts, strict=True))
    return w, iterations


@torch.library.custom_op("maha_solvers::judge", mutates_args=())
def _judge(residual: Tensor, tolerance: Tensor, tol: float, batch_shape: list[int], on_failure: str) -> Tensor:
    converged = residual <= tolerance  # False for NaN
    if on_failure != "ignore" and not bool(converged.all()):
        message = f"not solved to tol={tol:g}, residual up to {float(residual[~converged].max()):.1e}"
        report([(message, ~converged)], batch_shape, on_failure, ConvergenceError)
    return converged


def _register(operator: Any, shapes: Callable[[Tensor], tuple[Tensor, ...] | Tensor]) -> None:
    """Gives an operator its output shapes, and batches it by widening the batch that is there already."""
    operator.register_fake(lambda M, q, *rest: shapes(q))

    def batched(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        def widen(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            value = value.unsqueeze(0).expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            return value.movedim(0, -2).flatten(-2)

        result = operator(*(widen(value, dim) for value, dim in zip(arguments, in_dims, strict=True)))
        many = result if isinstance(result, tuple) else (result,)
        split = tuple(tensor.unflatten(-1, (info.batch_size, -1)).movedim(-2, 0) for tensor in many)
        return (split, (0,) * len(split)) if isinstance(result, tuple) else (split[0], 0)

    operator.register_vmap(batched)


_register(_inspect, lambda q: q.new_empty(q.shape[-1:], dtype=torch.bool))
_register(_run, lambda q: (torch.empty_like(q), q.new_empty(q.shape[-1:], dtype=torch.long)))
_register(_judge, lambda residual: torch.empty_like(residual, dtype=torch.bool))
