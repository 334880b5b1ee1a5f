"""Batches of small linear systems in extended precision."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
SINGULAR = np.longdouble(1e16)
"""Condition above which a matrix is taken for singular; extended precision has 19 digits."""


def inverse(A: Array) -> tuple[Array, Array]:
    """``A⁻¹`` and ``‖A‖_∞ ‖A⁻¹‖_∞`` for ``A`` of shape ``(n, m, m)``, by Gauss–Jordan elimination, pivots by row.

    A pivot of zero is replaced by a tiny one: the condition then says that the matrix is singular.
    """
    n, m, _ = A.shape
    eye = np.broadcast_to(np.eye(m, dtype=np.longdouble)[:, :, None], (m, m, n))
    T = np.concatenate([np.moveaxis(A, 0, -1).astype(np.longdouble), eye], axis=1)  # (row, column, item)
    size = abs(A).sum(2).max(1)
    tiny = np.finfo(np.longdouble).eps * np.where(size > 0, size, 1)
    items = np.arange(n)
    for k in range(m):
        pivot = k + abs(T[k:, k]).argmax(0)
        rows = T[pivot, :, items].T
        T[pivot, :, items] = T[k].T
        head = np.where(abs(rows[k]) < tiny, tiny, rows[k])
        T[k] = rows / head
        factor = T[:, k].copy()
        factor[k] = 0
        T -= factor[:, None] * T[k]
    found = np.moveaxis(T[:, m:], -1, 0)
    return found, size * abs(found).sum(2).max(1)
