"""What may be off, and by how much."""

from __future__ import annotations

import numpy as np

WEIGHTS = {np.float64: 1e-6, np.float32: 1e-3}
"""Relative violation that a solved item may have: a hundred to a thousand times what the solvers promise."""

GRADIENTS = {np.float64: 1e-6, np.float32: 1e-2}
"""Relative error of a gradient, by the largest entry, besides what its condition explains."""

ANSWER = {np.float64: 1e-8, np.float32: 1e-4}
"""What solvers leave of the weights: a coordinate so near to a threshold may be on either side of it."""

TIE = 1e3
"""The documented width of a tie, in roundings of the largest weight or force."""

EXCUSED = 64
"""Roundings, times L + 4, that a backward stable solution of a linear system may leave in a force."""

STABLE = 30
"""Roundings, times L + 4 and the condition, that the gradient of a backward stable method may be off by."""

UNIQUE = 1000
"""Roundings of a force, times L + 4 and over the least eigenvalue, by which weights that are unique may differ."""
