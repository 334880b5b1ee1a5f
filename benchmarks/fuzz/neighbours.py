"""No item may have an effect on another: the same bits in any company, in any order, and alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.fuzz.ask import Answer, ask
from benchmarks.fuzz.batches import Array, Batch, Truth
from benchmarks.fuzz.findings import Findings

Rng = np.random.Generator
ALONE = 2  # items that are asked by themselves
HARD = 8  # neighbours that are not monotone: solvers try everything before they give up


def compare_company(batch: Batch, answer: Answer, rng: Rng, findings: Findings) -> None:
    """Asks again in another order, for a part, among faulty and hard neighbours (one of the three), and one by one."""
    B = batch.count
    for k in rng.choice(B, min(ALONE, B), replace=False):
        item = np.array([k])
        for words, alone in (("in a batch of one", False), ("without a batch", True)):
            if batch.truth[k] not in (Truth.FAULTY, Truth.INFEASIBLE):  # by itself it may raise instead
                _compare(answer, item, ask(batch.select(item), alone=alone), np.arange(1), words, findings)
    if B < 2:
        return
    kind = rng.integers(0, 3)
    if kind == 0:
        order = rng.permutation(B)
        _compare(answer, order, ask(batch.select(order)), np.arange(B), "in another order", findings)
    elif kind == 1:
        part = np.flatnonzero(rng.random(B) < 0.5)[: int(rng.integers(1, B))]
        if len(part):
            _compare(answer, part, ask(batch.select(part)), np.arange(len(part)), "in a part of the batch", findings)
    else:
        spoiled = rng.random(B) < 0.5
        kept = np.flatnonzero(~spoiled)
        among = ask(_spoiled(batch, spoiled, rng))
        _compare(answer, kept, among, kept, "among faulty and hard neighbours", findings)


def _spoiled(batch: Batch, items: Array, rng: Rng) -> Batch:
    """The batch with the given items made faulty, not monotone, or far from where they were."""
    kind = torch.from_numpy(np.where(items.cumsum() <= HARD, 1, 2 * rng.integers(0, 2, batch.count)))
    chosen = torch.from_numpy(items)
    M = torch.where((chosen & (kind == 0))[:, None, None], torch.nan, batch.M)
    M = torch.where((chosen & (kind == 1))[:, None, None], -M, M)
    q = torch.where((chosen & (kind == 2))[:, None], -1e3 * batch.q, batch.q)
    return replace(batch, M=M, q=q)


def _compare(before: Answer, mine: Array, now: Answer, theirs: Array, words: str, findings: Findings) -> None:
    if not len(mine):
        return
    if now.error:
        if not now.documented:
            findings.note(f"company: an exception {words}", int(mine[0]), now.error)
        return
    findings.counts[f"items {words}"] += len(mine)
    pairs = {"weights": (before.weights, now.weights), "status": (before.status, now.status)}
    pairs |= {f"gradient of {name}": (before.gradients[name], now.gradients[name]) for name in before.gradients}
    for name, (a, b) in pairs.items():
        a, b = a[mine].reshape(len(mine), -1), b[theirs].reshape(len(mine), -1)
        differ = ~((a == b) | (np.isnan(a) & np.isnan(b))).all(1)
        findings.blame(f"company: {name} differs {words}", differ, items=mine)
