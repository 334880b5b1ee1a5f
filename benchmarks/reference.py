"""Random problems, and what is true of them to more digits than any contender has.

The weights and gradients here come from no contender. A textbook active-set method in numpy guesses the support of one
item at a time; the optimality system on that support is then solved in extended precision (numpy's ``longdouble``: 64
bits of mantissa on x86, on some machines only double), and the answer is *verified*: a convex program's solution is
known by its optimality conditions, whatever produced it. Items that are within ``margin`` of a tie (a weight, or the
multiplier of a zero weight, that is itself nearly zero) are left out: their gradient jumps there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RIDGE = 1e-2
CHUNK = 1024


@dataclass(frozen=True)
class Problems:
    """A batch of simplex programs and a cotangent: ``M`` (B, L, L), ``q`` and ``cotangent`` (B, L), float64, CPU."""

    M: Tensor
    q: Tensor
    cotangent: Tensor

    def first(self, count: int) -> Problems:
        """Returns the first ``count`` items."""
        return Problems(self.M[:count], self.q[:count], self.cotangent[:count])


def random_problems(L: int, B: int, seed: int) -> Problems:
    """Returns Gram matrices of Gaussian features plus a ridge, with Gaussian ``q`` and cotangent.

    ``M = YYᵀ/d + 0.01 I`` with ``d = max(16, 2L)`` features a scale, so condition numbers are mostly below a hundred.
    The size of ``q`` differs between items, log-uniform from 0.03 to 1: solutions have from one weight to nearly all.
    """
    generator = torch.Generator().manual_seed(seed)
    d = max(16, 2 * L)
    M = torch.empty(B, L, L, dtype=torch.float64)
    for start in range(0, B, CHUNK):  # the features of a large batch would not fit in memory at once
        Y = torch.randn(min(CHUNK, B - start), L, d, dtype=torch.float64, generator=generator)
        gram = Y @ Y.mT / d
        M[start : start + CHUNK] = (gram + gram.mT) / 2  # symmetric to the last bit, as some peers demand
    M.diagonal(dim1=-2, dim2=-1).add_(RIDGE)
    size = 0.03 ** torch.rand(B, 1, dtype=torch.float64, generator=generator)
    q = size * torch.randn(B, L, dtype=torch.float64, generator=generator)
    return Problems(M, q, torch.randn(B, L, dtype=torch.float64, generator=generator))


@dataclass(frozen=True)
class Reference:
    """The truth about a sample of a batch.

    Attributes:
        items: indices into the batch, shape (n,).
        weights: shape (n, L).
        gradient_matrix: symmetric part of the gradient of ``M``, shape (n, L, L). (Peers know symmetric ``M`` only.)
        gradient_linear: gradient of ``q``, shape (n, L).
        ties: how many items of the sample were left out because they are close to a tie.
    """

    items: NDArray[np.intp]
    weights: NDArray[np.longdouble]
    gradient_matrix: NDArray[np.longdouble]
    gradient_linear: NDArray[np.longdouble]
    ties: int

    def error_weights(self, weights: Tensor) -> float:
        """Returns the largest error of a batch of weights over the sample."""
        return _largest(weights.detach().numpy()[self.items] - self.weights)

    def error_gradient(self, gradient_M: Tensor, gradient_q: Tensor) -> float:
        """Returns the largest error of both gradients over the sample."""
        of_M = gradient_M.detach().numpy()[self.items]
        of_M = (of_M + of_M.swapaxes(-1, -2)) / 2 - self.gradient_matrix
        return max(_largest(of_M), _largest(gradient_q.detach().numpy()[self.items] - self.gradient_linear))


def reference(problems: Problems, sample: int = 64, margin: float = 1e-6) -> Reference:
    """Solves the first ``sample`` items of a batch to extended precision.

    Args:
        problems: the batch.
        sample: how many items to look at.
        margin: items with strict complementarity below this are left out.

    Raises:
        RuntimeError: if an answer does not satisfy its own optimality conditions.
    """
    L = problems.q.shape[-1]
    solved, ties = [], 0
    for item in range(min(sample, len(problems.q))):
        M, q, g = (x[item].numpy() for x in (problems.M, problems.q, problems.cotangent))
        support = find_support(M, q)
        weights, total = _solve_on_support(M, -q, support, 1.0)
        slack = M @ weights + q + total  # M w + q + ν, zero on the support and ≥ 0 off it
        if max(_largest(slack[support]), abs(weights.sum() - 1)) > 1e-14 * L:
            raise RuntimeError(f"the reference solution of item {item} misses its own equations")
        distance = min(np.min(weights[support]), np.min(slack[~support], initial=np.inf))
        if distance < -margin:
            raise RuntimeError(f"the reference solution of item {item} is not optimal: {distance:.1e}")
        if distance < margin:
            ties += 1
            continue
        y, _ = _solve_on_support(M.T, g, support, 0.0)
        solved.append((item, weights, -(np.outer(y, weights) + np.outer(weights, y)) / 2, -y))
    items, weights, gradients_M, gradients_q = zip(*solved, strict=True) if solved else ((), (), (), ())
    return Reference(
        np.array(items, dtype=np.intp),
        np.array(weights, dtype=np.longdouble).reshape(-1, L),
        np.array(gradients_M, dtype=np.longdouble).reshape(-1, L, L),
        np.array(gradients_q, dtype=np.longdouble).reshape(-1, L),
        ties,
    )


def find_support(M: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns the support of the solution of one item by the primal active-set method, started at a vertex.

    Every step keeps the point feasible and lowers the objective, so away from ties it ends (Nocedal & Wright, Numerical
    Optimization, algorithm 16.3).

    Raises:
        RuntimeError: if it does not end, which a tie can bring about.
    """
    support = np.zeros(len(q), dtype=bool)
    support[np.argmin(np.diag(M) / 2 + q)] = True
    weights = support.astype(float)
    for _ in range(100 * len(q)):
        target, total = _solve_on_support(M, -q, support, 1.0)
        blocking = support & (target < 0)
        if blocking.any():
            step = np.full(len(q), np.inf)
            step[blocking] = weights[blocking] / (weights - target)[blocking]
            first = np.argmin(step)
            weights = weights + step[first] * (target - weights).astype(float)
            support[first], weights[first] = False, 0.0
            continue
        weights = target.astype(float)
        slack = np.where(support, np.inf, M @ target + q + total)
        if slack.min() >= -1e-15:
            return support
        support[np.argmin(slack)] = True
    raise RuntimeError("the active-set method of the reference did not end: the problem is at a tie")


def _solve_on_support(
    M: NDArray[np.float64], right: NDArray[np.float64], support: NDArray[np.bool_], total: float
) -> tuple[NDArray[np.longdouble], np.longdouble]:
    """Solves ``M_FF x_F + ν1 = right_F``, ``1ᵀx_F = total``, ``x = 0`` off F; returns ``x`` and ``ν``."""
    size = int(support.sum())
    system = np.ones((size + 1, size + 1), dtype=np.longdouble)
    system[:size, :size] = M[np.ix_(support, support)]
    system[size, size] = 0
    solution = solve_extended(system, np.append(right[support], total).astype(np.longdouble))
    x = np.zeros(len(right), dtype=np.longdouble)
    x[support] = solution[:size]
    return x, solution[size]


def solve_extended(A: NDArray[np.longdouble], b: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
    """Solves ``A x = b`` in ``longdouble``, which LAPACK does not know: elimination with row pivots, refined twice."""
    n = len(b)
    LU, rows = A.copy(), np.arange(n)
    for k in range(n):
        pivot = k + int(np.argmax(np.abs(LU[k:, k])))
        LU[[k, pivot]], rows[[k, pivot]] = LU[[pivot, k]], rows[[pivot, k]]
        LU[k + 1 :, k] /= LU[k, k]
        LU[k + 1 :, k + 1 :] -= np.outer(LU[k + 1 :, k], LU[k, k + 1 :])

    def substitute(right: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
        x = right[rows]
        for k in range(1, n):
            x[k] -= LU[k, :k] @ x[:k]
        for k in reversed(range(n)):
            x[k] = (x[k] - LU[k, k + 1 :] @ x[k + 1 :]) / LU[k, k]
        return x

    x = substitute(b)
    for _ in range(2):
        x = x + substitute(b - A @ x)
    return x


def natural_residual(problems: Problems, weights: Tensor) -> float:
    """Returns ``max ‖w − Π(w − (Mw + q))‖_∞`` over the whole batch, Π the projection onto the simplex.

    The sample says how many digits are right; this says that no item of the batch was left unsolved.
    """
    if not weights.isfinite().all():
        return float("nan")
    point = weights - ((problems.M @ weights.unsqueeze(-1)).squeeze(-1) + problems.q)
    sorted_point = point.sort(descending=True).values
    threshold = (sorted_point.cumsum(-1) - 1) / torch.arange(1, point.shape[-1] + 1, dtype=point.dtype)
    size = (sorted_point > threshold).sum(-1, keepdim=True)
    projection = (point - threshold.gather(-1, size - 1)).clamp(min=0)
    return float((weights - projection).abs().max())


def _largest(values: NDArray[np.longdouble]) -> float:
    return float(np.max(np.abs(values), initial=0))
