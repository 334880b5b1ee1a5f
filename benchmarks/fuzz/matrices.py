"""Matrices of every kind, in units of about one."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
Rng = np.random.Generator


def conditioned(rng: Rng, B: int, L: int, most: float) -> tuple[Array, Array]:
    """Symmetric positive definite matrices with condition numbers up to ``most``, and their least eigenvalues."""
    Q, _ = np.linalg.qr(rng.normal(size=(B, L, L)))
    least = most ** -rng.random((B, 1))
    eigenvalues = least ** rng.random((B, L))
    eigenvalues[:, 0] = 1.0
    eigenvalues[:, -1:] = least if L > 1 else 1.0
    M = (Q * eigenvalues[:, None, :]) @ Q.swapaxes(1, 2)
    return 0.5 * (M + M.swapaxes(1, 2)), eigenvalues.min(1)


def skew(rng: Rng, B: int, L: int, coarse: bool) -> Array:
    """Zero-sum games: antisymmetric matrices, of small whole numbers if ``coarse``."""
    A = rng.integers(-2, 3, (B, L, L)).astype(float) if coarse else rng.normal(size=(B, L, L))
    return A - A.swapaxes(1, 2)


def gram(rng: Rng, B: int, L: int, channels: int, coarse: bool) -> tuple[Array, Array]:
    """Gram matrices ``YYᵀ`` of rank ``channels`` at most, and ``Y``, of small whole numbers if ``coarse``."""
    shape = (B, L, channels)
    Y = rng.integers(-2, 3, shape).astype(float) if coarse else rng.normal(size=shape) / channels**0.5
    return Y @ Y.swapaxes(1, 2), Y


def duplicated(rng: Rng, M: Array) -> tuple[Array, Array]:
    """The same with some coordinates made exact copies of others, and ``(B, L)``, whose copy each one is."""
    B, L = M.shape[:2]
    of = np.where(rng.random((B, L)) < 0.4, rng.integers(0, L, (B, L)), np.arange(L))
    return np.take_along_axis(np.take_along_axis(M, of[:, :, None], 1), of[:, None, :], 2), of


def saddle(rng: Rng, B: int, L: int) -> Array:
    """A program with rows as a monotone problem, ``[[M, Aᵀ], [−A, 0]]``: the last third are multipliers of rows."""
    rows = max(L // 3, 1) if L > 1 else 0
    n = L - rows
    K = np.zeros((B, L, L))
    M, _ = conditioned(rng, B, n, 100.0)
    A = rng.normal(size=(B, rows, n))
    K[:, :n, :n], K[:, :n, n:], K[:, n:, :n] = M, A.swapaxes(1, 2), -A
    return K
