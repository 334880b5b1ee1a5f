"""What changes nothing: other units, a common force where the sum is fixed, the order of the coordinates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.fuzz.ask import SOLVED, Answer, ask
from benchmarks.fuzz.batches import Array, Batch, Truth, Value, exact
from benchmarks.fuzz.certificate import certify
from benchmarks.fuzz.checks import judge
from benchmarks.fuzz.findings import Findings
from benchmarks.fuzz.tolerances import spread

Rng = np.random.Generator
MOST = 1000  # items


def compare_transformed(batch: Batch, answer: Answer, rng: Rng, findings: Findings) -> None:
    """Asks for a part of the batch in another guise; judges that answer too, and compares it with the first."""
    items = rng.permutation(batch.count)[:MOST]
    batch, answer = batch.select(items), answer.select(items)
    kind = rng.integers(0, 4)
    order = np.arange(batch.size)
    moved = np.zeros(batch.count)  # by a force that only rounds
    if kind == 0 and batch.total is not None and batch.equality:
        words, changed, moved = _with_common_force(batch, rng)
    elif kind == 1:
        words, order = "with coordinates in another order", rng.permutation(batch.size)
        changed = _reordered(batch, order)
    elif kind == 2 and batch.total is None:
        words, changed = "with coordinates in other units", _in_units(batch, rng, own=True)
    else:
        words, changed = "in other units", _in_units(batch, rng, own=False)
    now = ask(changed)
    if now.error:
        if not now.documented:
            findings.note(f"invariance: an exception {words}", int(items[0]), now.error)
        return
    own = Findings(changed)
    judge(changed, now, own)
    findings.failures += [failure._replace(kind=f"{failure.kind} (transformed)") for failure in own.failures]
    findings.counts[f"items {words}"] += batch.count
    back = np.argsort(order)
    a, b = answer.weights / batch.weight_unit, (now.weights / changed.weight_unit)[:, back]
    known = batch.truth != Truth.OPEN
    differ = known & ((answer.status == SOLVED) != (now.status == SOLVED))
    findings.blame(f"invariance: converged differs {words}", differ, items=items)
    both = (answer.status == SOLVED) & (now.status == SOLVED) & (batch.least > 0)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        problem = exact(batch)
        sizes = certify(problem, np.where(np.isfinite(a), a, 0).astype(np.longdouble), 1e-6)
        force = sizes.force_size + moved
        off = abs(a - b).max(1) / spread(answer.weights.dtype.type, batch.size, sizes.weight_size, force, batch.least)
    findings.blame(f"invariance: weights differ {words}", both & (off > 1), off, items)


def _with_common_force(batch: Batch, rng: Rng) -> tuple[str, Batch, Array]:
    """``q + t 1``, and ``t`` in units of force."""
    by = float(rng.choice([1.0, 64.0, 4096.0]))
    force = batch.force_unit[:, :1]
    q = batch.q + torch.from_numpy(by * force).to(batch.dtype)
    return "with a common force", replace(batch, q=q), np.full(batch.count, by)


def _reordered(batch: Batch, order: Array) -> Batch:
    index = torch.from_numpy(order)

    def reordered(value: Value) -> Value:
        return value[:, index] if isinstance(value, torch.Tensor) else value

    return replace(
        batch,
        M=batch.M[:, index][:, :, index],
        q=batch.q[:, index],
        l1=reordered(batch.l1),
        lower=reordered(batch.lower),
        upper=reordered(batch.upper),
        mask=None if batch.mask is None else batch.mask[:, index],
        weight_unit=batch.weight_unit[:, order],
        force_unit=batch.force_unit[:, order],
        cotangent=batch.cotangent[:, index],
    )


def _in_units(batch: Batch, rng: Rng, *, own: bool) -> Batch:
    """Forces and weights times powers of two, which round nothing; with ``own``, each coordinate by one of its own."""
    B, L = batch.count, batch.size
    force, weight = (np.exp2(rng.integers(-20, 21, (1, 1)).astype(float)) for _ in range(2))
    fixed = batch.set_name in ("Simplex", "CappedSimplex") and not isinstance(batch.total, torch.Tensor)
    weight = np.ones((1, 1)) if fixed else weight
    if own:
        each = np.exp2(rng.integers(-5, 6, (B, L)).astype(float))
        weight, force = weight * each, force / each
    weight, force = np.broadcast_to(weight, (B, L)), np.broadcast_to(force, (B, L))

    def times(value: Value, unit: Array) -> Value:
        if isinstance(value, torch.Tensor):
            return value * torch.from_numpy(unit.copy()).to(value.dtype)
        if value == 0 or not np.isfinite(value):
            return value
        scaled = torch.full((B, L), value, dtype=batch.dtype) * torch.from_numpy(unit.copy()).to(batch.dtype)
        return scaled if own else scaled[0, 0].item()

    total = batch.total
    if total is not None and not fixed:
        total = (
            total * torch.from_numpy(weight[:, 0].copy()).to(batch.dtype)
            if isinstance(total, torch.Tensor)
            else (total * float(weight[0, 0]))
        )
    return replace(
        batch,
        M=batch.M * torch.from_numpy(force[:, :, None] / weight[:, None, :]).to(batch.dtype),
        q=times(batch.q, force),  # pyright: ignore[reportArgumentType]
        l1=times(batch.l1, force),
        lower=times(batch.lower, weight),
        upper=times(batch.upper, weight),
        total=total,
        cotangent=batch.cotangent / torch.from_numpy(weight.copy()).to(batch.dtype),
        weight_unit=batch.weight_unit * weight,
        force_unit=batch.force_unit * force,
    )
