r"""Gradients where the adjoint system is singular: the active rows hold, and of the rest the least-norm solution.

With ``Z`` an orthonormal basis of ``{y_F : 1ᵀ y_F = 0}`` where the sum is tight, of all ``y_F`` elsewhere,
``y_F = Z (ZᵀM_FFᵀZ)⁺ Zᵀ g_F``. Where ``Zᵀ g_F`` lies outside of the range of ``ZᵀM_FFᵀZ`` the weights have no
derivative, and that has to be said.
"""

from __future__ import annotations

import numpy as np

from benchmarks.fuzz.ask import Answer
from benchmarks.fuzz.batches import Array, Batch, Exact
from benchmarks.fuzz.findings import Findings
from benchmarks.fuzz.pieces import Pieces

MOST = 200  # items of a batch


def singular_faults(batch: Batch, problem: Exact, answer: Answer, pieces: Pieces, findings: Findings) -> Array:
    """How wrong the gradient of ``q`` is, ``(B,)``, 0 where it is right or cannot be told.

    Only where the rank is plain: singular values are above 1e-3 of the largest, or below 1e-11 (1e-6 in float32).
    """
    faults = np.zeros(batch.count)
    nothing = 1e-11 if problem.eps < 1e-10 else 1e-6
    tolerance = 1e-6 if problem.eps < 1e-10 else 1e-2
    for k in range(min(len(pieces.item), MOST)):
        b, F = pieces.item[k], np.flatnonzero(pieces.free[k])
        if not len(F):
            continue
        M, g = (x.astype(float) for x in (problem.M[b][np.ix_(F, F)].T, problem.cotangent[b, F]))
        Z = np.eye(len(F))
        if pieces.tight[k]:
            Z = np.linalg.qr(np.column_stack([np.ones(len(F)), np.eye(len(F))[:, 1:]]))[0][:, 1:]
        core, rhs = Z.T @ M @ Z, Z.T @ g
        U, s, Vt = np.linalg.svd(core) if core.size else (core, np.zeros(0), core)
        top = max(s.max(initial=0.0), abs(M).max())
        rank = int((s > 1e-3 * top).sum())
        if (s[rank:] > nothing * top).any():
            continue
        findings.counts["singular adjoints checked"] += 1
        lost = U[:, rank:].T @ rhs
        y = Z @ (Vt[:rank].T @ ((U[:, :rank].T @ rhs) / s[:rank]))
        uniform = np.ptp(batch.weight_unit[b, F]) == 0  # else the least norm is one thing in each unit
        got = -answer.gradients["q"][b].astype(np.longdouble)[F] * batch.force_unit[b, F]
        size = max(abs(y).max(initial=0.0), abs(g).max() / (top if top > 0 else 1.0))
        off = float(abs(got - y).max()) / size if size else float(abs(got).max())
        if pieces.tight[k]:
            off = max(off, float(abs(got.sum())) / size if size else 0.0)
        if off > tolerance and uniform:
            faults[b] = off
        elif abs(lost).max(initial=0.0) > 1e-3 * abs(g).max() and not answer.warned:
            faults[b] = float(abs(lost).max())
    return faults
