"""What may be off, and by how much."""

from __future__ import annotations

import numpy as np

WEIGHTS = {np.float64: 1e-6, np.float32: 1e-3}
"""Relative violation that a solved item may have: a hundred to a thousand times what the solvers promise."""

GRADIENTS = {np.float64: 1e-6, np.float32: 1e-2}
"""Relative error of a gradient, by the largest entry, besides what its condition explains."""

ANSWER = {np.float64: 1e-8, np.float32: 1e-4}
"""What solvers leave of the weights: a coordinate so near to a threshold may be on either side of it."""

TIE = 1e2
"""The documented width of a tie, in roundings of the largest weight or force."""

EXCUSED = 64
"""Roundings, times L + 4, that a backward stable solution of a linear system may leave in a force."""

STABLE = 30
"""Roundings, times L + 4 and the condition, that the gradient of a backward stable method may be off by."""

PROMISED = {np.float64: 1e-8, np.float32: 1e-4}
"""Ten times the relative residual that solvers promise."""

UNIQUE = 1000
"""Roundings of a force, times L + 4, that an answer may be off by."""


def spread(dtype: type, size: int, weight: np.ndarray, force: np.ndarray, least: np.ndarray) -> np.ndarray:
    """How far two solved answers may lie apart where there is one solution, ``(B,)``.

    Args:
        dtype: ``np.float64`` or ``np.float32``.
        size: Number of coordinates.
        weight: ``(B,)``, size of the weights; ``force`` of the terms of a force.
        force: ``(B,)``.
        least: ``(B,)``, least eigenvalue of the symmetric part: a force off by ``r`` moves weights by ``r / least``.
    """
    residual = PROMISED[dtype] + UNIQUE * (size + 4) * np.finfo(dtype).eps
    return WEIGHTS[dtype] * weight + residual * force / least
