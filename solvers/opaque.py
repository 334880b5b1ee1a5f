"""The steps of a solve that look at values, as operators that torch need not look into.

A solver stops when its numbers say so, which neither ``torch.compile`` nor ``torch.func.vmap`` can trace. Under either
these steps run as custom operators (`torch.library`), whose shapes are known and whose inside stays eager; without,
they are plain calls. They see no gradients: those are attached afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.active import Active, active_set
from solvers.checks import find_faults, looks_sound, report, report_failures, report_gradient
from solvers.kkt import solve_kkt
from solvers.natural import natural_map
from solvers.registry import Solver, make_solver, registered
from solvers.standard_form import TENSORS, StandardForm, is_tracing
from solvers.status import Status
from solvers.unsolved import status_of

CHUNK_BYTES = 2**21
"""Size of ``M`` in a piece of the batch that is worked on at once on a CPU: about a core's second-level cache."""


class Certified(NamedTuple):
    """What is found out about weights: the relative residual and the `Status`, ``(B,)`` each, and where they lie."""

    residual: Tensor
    status: Tensor
    active: Active


def inspect(problem: StandardForm, fixed_set: bool, batch_shape: list[int], on_failure: str) -> Tensor | None:
    """The `Status` of the data of each item, ``(B,)``, or ``None`` for all sound; raises or warns about the others.

    ``fixed_set`` says that the set is known to be sound.
    """
    if not is_tracing(problem) and looks_sound(problem, fixed_set):
        return None
    return _call(_inspect, problem, batch_shape, on_failure)


def run(
    problem: StandardForm, kind: Hashable, options: tuple[tuple[str, object], ...], tol: float, max_iter: int | None
) -> tuple[Tensor, Tensor]:
    """Weights ``(L, B)`` and iterations ``(B,)`` of a solver, without gradients.

    Args:
        problem: The problems.
        kind: The solver's flag, or its class.
        options: Its options.
        tol: Relative tolerance.
        max_iter: Bound on the iterations.
    """
    return _call(_run, problem, _handle(kind, options), tol, max_iter)


def certify(
    problem: StandardForm,
    w: Tensor,
    data: Tensor | None,
    tol: float,
    batch_shape: list[int],
    on_failure: str,
    *,
    strict: bool,
    check_monotone: bool,
) -> Certified:
    """Measures weights ``(L, B)``; raises or warns about those that are not a solution.

    Args:
        problem: The problems, without gradients.
        w: ``(L, B)``.
        data: The status of the data as from `inspect`: a status other than solved stays.
        tol: Relative tolerance.
        batch_shape: The user's batch dimensions.
        on_failure: ``"raise"``, ``"warn"`` or ``"ignore"``.
        strict: Whether items that are not solved pass no gradient on.
        check_monotone: Whether a solution needs a monotone ``M``, see `solvers.unsolved.status_of`.
    """
    if data is None:
        data = torch.zeros_like(w[0], dtype=torch.long)
    residual, status, *active = _call(
        _certify, problem, w.detach(), data, tol, batch_shape, on_failure, strict, check_monotone
    )
    return Certified(residual, status, Active(*active))


def inverse(problem: StandardForm, active: Active, batch_shape: list[int], on_failure: str) -> Tensor:
    """What maps ``(r, s)`` to the ``(x, ν)`` of `solve_kkt`, ``(L + 1, L + 1, B)``; reports where it is none."""
    M = problem.M.detach()
    return _chosen(_inverse, problem)(
        M, active.stiffness, active.free, active.tight, active.passes, batch_shape, on_failure
    )


_MADE: dict[int, Solver] = {}
_HANDLES: dict[Hashable, int] = {}


@torch._dynamo.assume_constant_result  # pyright: ignore[reportPrivateImportUsage]
def _handle(kind: Hashable, options: tuple[tuple[str, object], ...]) -> int:
    """A number under which an operator, which takes no objects, finds the solver with these options."""
    key = (registered(kind) if isinstance(kind, str) else kind, options)
    if key not in _HANDLES:
        _MADE[len(_HANDLES)] = make_solver(kind, dict(options))
        _HANDLES[key] = len(_HANDLES)
    return _HANDLES[key]


def _chosen(operator: Any, problem: StandardForm) -> Any:
    """The operator where somebody traces; else its function, into which a compiler that is on must not look either."""
    return operator if is_tracing(problem) else _PLAIN[operator]


def _call(operator: Any, problem: StandardForm, *arguments: object) -> Any:
    data = [getattr(problem, name) for name in TENSORS]
    data = [tensor.detach() if isinstance(tensor, Tensor) and tensor.requires_grad else tensor for tensor in data]
    return _chosen(operator, problem)(*data, problem.nonnegative, problem.equality, problem.symmetric, *arguments)


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
) -> Tensor:
    problem = StandardForm(M, q, lower, upper, l1, linear_l1, total, exists, nonnegative, equality, symmetric)
    faults = find_faults(problem)
    status = torch.zeros_like(q[0], dtype=torch.long)
    for _, items, kind in faults:
        status = torch.where(items, torch.maximum(status, torch.full_like(status, kind)), status)
    if bool((status != Status.SOLVED).any()):
        nothing_left = bool((status == Status.FAULTY_DATA).all()) and on_failure == "warn"
        messages = [(message, items) for message, items, _ in faults]
        report(messages, batch_shape, "raise" if nothing_left else on_failure, ValueError)
    return status


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
    solver: int,
    tol: float,
    max_iter: int | None,
) -> tuple[Tensor, Tensor]:
    problem = StandardForm(M, q, lower, upper, l1, linear_l1, total, exists, nonnegative, equality, symmetric)
    if problem.batch == 0:
        return torch.zeros_like(q), torch.zeros(0, dtype=torch.long, device=q.device)
    with torch.no_grad():
        parts = [_MADE[solver](chunk, tol, max_iter) for _, chunk in _chunks(problem)]
    w, iterations = (_joined(column) for column in zip(*parts, strict=True))
    return w.where(w.isfinite(), 0.0), iterations  # a last iterate may have overflowed


@torch.library.custom_op("maha_solvers::certify", mutates_args=())
def _certify(
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
    w: Tensor,
    data: Tensor,
    tol: float,
    batch_shape: list[int],
    on_failure: str,
    strict: bool,
    check_monotone: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = StandardForm(M, q, lower, upper, l1, linear_l1, total, exists, nonnegative, equality, symmetric)
    parts = []
    with torch.no_grad():
        for items, chunk in _chunks(problem):
            x, sound = w[:, items], data[items] == Status.SOLVED
            found = natural_map(chunk, x, tol)
            status = torch.where(sound, status_of(chunk, x, found, check_monotone), data[items])
            passes = sound & ((status == Status.SOLVED) | (not strict))
            parts.append((found.residual, status, *active_set(chunk, x, found, passes)))
    residual, status, *active = (_joined(column).contiguous() for column in zip(*parts, strict=True))
    failed = torch.where(data == Status.SOLVED, status, Status.SOLVED)  # faults of the data have been reported
    report_failures(failed, residual, tol, batch_shape, on_failure)
    return residual, status, *active  # pyright: ignore[reportReturnType]


@torch.library.custom_op("maha_solvers::inverse", mutates_args=())
def _inverse(
    M: Tensor, d: Tensor, free: Tensor, tight: Tensor, passes: Tensor, batch_shape: list[int], on_failure: str
) -> Tensor:
    L, B = free.shape
    columns = []
    eye = torch.eye(L + 1, dtype=M.dtype, device=M.device)
    worst = torch.zeros_like(d[0], dtype=torch.float64)
    for row in eye:  # right-hand sides, one after the other
        x, multiplier, residual = solve_kkt(M, d, free, tight, row[:L, None].expand(L, B), row[L].expand(B))
        columns.append(torch.cat((x, multiplier.unsqueeze(0))))
        worst = torch.maximum(worst, residual)
    report_gradient(torch.where(passes, worst, 0.0), batch_shape, on_failure)
    return torch.stack(columns, 1).to(M.dtype)


def _register(operator: Any, shapes: Callable[..., tuple[Tensor, ...] | Tensor]) -> None:
    """Gives an operator its output shapes, and batches it by widening the batch that is there already."""
    operator.register_fake(shapes)

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


def _fake_certified(M: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    L, B = q.shape
    return (
        q.new_empty(B),
        q.new_empty(B, dtype=torch.long),
        q.new_empty((L, B), dtype=torch.bool),
        q.new_empty(B, dtype=torch.bool),
        q.new_empty((L, B), dtype=torch.bool),
        q.new_empty((L, B), dtype=torch.bool),
        q.new_empty((L, B)),
        q.new_empty(B, dtype=torch.bool),
    )


_register(_inspect, lambda M, q, *rest: q.new_empty(q.shape[-1:], dtype=torch.long))
_register(_run, lambda M, q, *rest: (q.new_empty(q.shape), q.new_empty(q.shape[-1:], dtype=torch.long)))
_register(_certify, _fake_certified)
_register(_inverse, lambda M, d, free, *rest: M.new_empty((M.shape[0] + 1, M.shape[0] + 1, M.shape[-1])))

_PLAIN = {operator: torch.compiler.disable(operator._init_fn) for operator in (_inspect, _run, _certify, _inverse)}
