"""Families of random problems: what each is made of, and what is known of its items by construction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.fuzz import matrices
from benchmarks.fuzz.batches import Array, Batch, Truth, Value
from benchmarks.fuzz.sets import BOUNDED, BOXES, SETS, DrawnSet, draw_set
from benchmarks.fuzz.spoil import FREE_DIRECTIONS, spoil, unbounded

Rng = np.random.Generator
SIZES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
SHARES = (3, 12, 14, 20, 10, 10, 14, 7, 6, 2, 2)
FEW = 1 / 32
UNBOUNDED_SETS = ("NonNegative", "Box half open", "Free", "SumTo", "Budget below")


@dataclass(frozen=True)
class Family:
    """How ``M`` and ``q`` are made.

    Attributes:
        matrix: A name, see `_matrix`.
        sets: On which sets a solution is known to exist, or the truth is otherwise known.
        planted: How often ``q`` is made from a known solution; else it is random.
        coarse: How often data are on a coarse grid, so that ties are exact.
        truth: What all items are.
        spoiled: How often a batch has faulty, infeasible and other hopeless items among the others.
        part: Of the largest batch: small where solvers try everything before they give up.
    """

    matrix: str
    sets: tuple[str, ...] = SETS
    planted: float = 0.5
    coarse: float = 0.0
    truth: Truth = Truth.SOLVABLE
    spoiled: float = 0.3
    part: float = 1.0


FAMILIES = {
    "conditioned": Family("conditioned"),
    "game": Family("game"),
    "ties": Family("whole numbers", planted=1.0, coarse=1.0),
    "rank deficient": Family("gram", BOUNDED, planted=0.3),
    "rank deficient ties": Family("gram", planted=1.0, coarse=1.0),
    "duplicates": Family("duplicates", BOUNDED, planted=0.3, coarse=0.5),
    "linear program": Family("zero", BOUNDED, planted=0.3, coarse=0.5),
    "zero-sum game": Family("skew", BOUNDED, planted=0.3, coarse=0.5),
    "planted zero-sum game": Family("skew", planted=1.0, coarse=1.0),
    "rows": Family("saddle", ("Box half open", "NonNegative"), planted=1.0),
    "wild game": Family("any", BOUNDED, truth=Truth.OPEN, part=FEW),
    "concave player": Family("concave player", BOXES, truth=Truth.NOT_MONOTONE, part=FEW),
    "not monotone": Family("indefinite", SETS, truth=Truth.NOT_MONOTONE, part=FEW),
    "unbounded": Family("conditioned", UNBOUNDED_SETS, planted=0.0, coarse=0.3, truth=Truth.UNBOUNDED, part=FEW),
    "spoiled": Family("conditioned", spoiled=1.0),
}


def draw(
    family_name: str, rng: Rng, dtype: torch.dtype, most: int, *, set_name: str | None = None, size: int | None = None
) -> Batch:
    """Draws a batch of up to ``most`` problems of a family, fewer where they are large; any set and size if omitted."""
    family = FAMILIES[family_name]
    set_name = str(rng.choice(family.sets)) if set_name is None else set_name
    L = int(rng.choice(SIZES, p=np.array(SHARES) / sum(SHARES))) if size is None else size
    B = math.ceil(family.part * min(most, most * 8 / L))
    coarse = rng.random() < family.coarse
    exists = np.ones((B, L), bool)
    if rng.random() < 0.25:
        exists = rng.random((B, L)) < 0.7
        exists[np.arange(B), rng.integers(0, L, B)] = True
    C = draw_set(rng, set_name, exists, coarse)
    M, least = _matrix(family.matrix, rng, C, exists, coarse, dtype)
    l1 = _l1(rng, B, L, coarse)
    planted = rng.random() < family.planted
    q = planted_force(rng, M, C, l1, coarse) if planted else _random_force(rng, M, B, L, coarse)
    truth = np.full(B, family.truth)
    if family.truth == Truth.NOT_MONOTONE:
        truth[~FREE_DIRECTIONS[family.matrix](C, exists)] = Truth.OPEN
    if family.truth == Truth.SOLVABLE:
        truth[(least > 0) & (least < 64 * L * torch.finfo(dtype).eps)] = Truth.OPEN  # monotone within rounding only
    if family.truth == Truth.UNBOUNDED:
        truth[~unbounded(rng, M, q, l1, C, exists)] = Truth.OPEN
    drawn = {"M": M, "q": q, "l1": l1, "lower": C.lower, "upper": C.upper, "total": C.total}
    if rng.random() < family.spoiled:
        spoil(rng, drawn, C.equality, exists, truth, 1.0 if family_name == "spoiled" else 0.05)
    reach = _reach(drawn, C, least, planted, set_name)
    return _stated(rng, family_name, set_name, drawn, C, exists, truth, reach, least, coarse, dtype)


def _matrix(kind: str, rng: Rng, C: DrawnSet, exists: Array, coarse: bool, dtype: torch.dtype) -> tuple[Array, Array]:
    """The matrices and the least eigenvalues of their symmetric parts, where known and positive; 0 elsewhere."""
    B, L = exists.shape
    none = np.zeros(B)
    channels = int(rng.integers(1, max(L, 2)))
    if kind == "conditioned":
        return matrices.conditioned(rng, B, L, 1e12 if rng.random() < 0.5 else 100.0)
    if kind == "game":
        M, least = matrices.conditioned(rng, B, L, 1e4)
        return M + 10.0 ** rng.uniform(-1, 1, (B, 1, 1)) * matrices.skew(rng, B, L, False), least
    if kind == "whole numbers":
        M, _ = matrices.gram(rng, B, L, channels, True)
        A = matrices.skew(rng, B, L, True) * (rng.random((B, 1, 1)) < 0.3)
        return M + A + np.eye(L), np.ones(B)
    if kind == "gram":
        return matrices.gram(rng, B, L, channels, coarse)[0], none
    if kind == "duplicates":
        M = matrices.gram(rng, B, L, L, True)[0] if coarse else matrices.conditioned(rng, B, L, 100.0)[0]
        return matrices.duplicated(rng, M)[0], none
    if kind == "zero":
        return np.zeros((B, L, L)), none
    if kind == "skew":
        return matrices.skew(rng, B, L, coarse), none
    if kind == "saddle":
        return matrices.saddle(rng, B, L), none
    if kind == "any":
        M = rng.normal(size=(B, L, L))
        M[:, np.arange(L), np.arange(L)] = abs(M[:, np.arange(L), np.arange(L)])
        return M, none
    M, _ = matrices.conditioned(rng, B, L, 100.0)
    if kind == "concave player":
        M += matrices.skew(rng, B, L, False)
        M[:, 0, 0] = -0.5
        return M, none
    d = np.zeros((B, L))  # indefinite: a direction of the set, of sum zero where there is one
    d[:, 0] = 1.0
    if C.total is not None and L > 1:
        d[:, 1] = -1.0
    return M - 3.0 * d[:, :, None] * d[:, None, :], none


def _l1(rng: Rng, B: int, L: int, coarse: bool) -> Array:
    kind = rng.random()
    if kind < 0.4:
        return np.zeros((B, L))
    shape = (B, L) if kind < 0.75 else (B, 1) if kind < 0.9 else (1, 1)
    weights = 0.25 * rng.integers(0, 4, shape) if coarse else rng.uniform(0, 0.5, shape)
    return np.broadcast_to(weights, (B, L)).copy()


def _random_force(rng: Rng, M: Array, B: int, L: int, coarse: bool) -> Array:
    kind = rng.random()
    if coarse:
        return 0.25 * rng.integers(-6, 7, (B, L)).astype(float)
    if kind < 0.1:
        return np.zeros((B, L))
    q = rng.normal(size=(B, L)) * 10.0 ** rng.uniform(-3, 3 if kind > 0.6 else 0, (B, 1))
    return np.einsum("bij,bj->bi", M, q) if kind < 0.3 else q


def planted_force(rng: Rng, M: Array, C: DrawnSet, l1: Array, coarse: bool) -> Array:
    """``q`` for which the point inside the set is a solution; every third multiplier is zero, a tie."""
    w = C.inside
    B, L = w.shape
    size = 0.25 * rng.integers(1, 9, (B, L)) if coarse else rng.uniform(0.05, 1.0, (B, L))
    size = size * (rng.random((B, L)) < (0.7 if coarse else 1.0))
    low, high = np.where(w > 0, l1, -l1), np.where(w < 0, -l1, l1)
    multiplier = low + 0.25 * rng.integers(0, 5, (B, L)) * (high - low)  # between the sides of the kink at 0
    multiplier = np.where(w >= C.upper, high + size, multiplier)
    multiplier = np.where(w <= C.lower, np.where(w >= C.upper, size - 0.5, low - size), multiplier)
    multiplier = np.where((w <= C.lower) & (w == 0) & (w < C.upper), high - size, multiplier)
    multiplier = np.where((w >= C.upper) & (w == 0) & (w > C.lower), low + size, multiplier)
    price = 0.25 * rng.integers(-8, 9, (B, 1)) if coarse else rng.normal(size=(B, 1))
    price = price if C.equality else abs(price)
    price = np.where(C.tight[:, None], price, 0.0)
    return -np.einsum("bij,bj->bi", M, w) - multiplier - price


def _reach(drawn: dict[str, Array], C: DrawnSet, least: Array, planted: bool, set_name: str) -> Array:
    """How large a weight may be: no bound on a bounded set, ``force / least eigenvalue``, or the planted solution."""
    B = len(least)
    if set_name in BOUNDED:
        return np.full(B, np.inf)
    if planted:
        return 1e3 * np.maximum(abs(C.inside).max(1), 1.0)
    finite = [np.where(np.isfinite(bound), abs(bound), 0.0).max(1) for bound in (C.lower, C.upper)]
    imposed = finite[0] + finite[1] + (0.0 if C.total is None else abs(C.total))
    L = drawn["q"].shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        force = abs(drawn["q"]).max(1) + abs(drawn["l1"]).max(1) + L * abs(drawn["M"]).max((1, 2)) * imposed
        return np.nan_to_num(imposed + 2 * L * force / least, nan=np.inf)


def _stated(
    rng: Rng,
    family: str,
    set_name: str,
    drawn: dict[str, Array],
    C: DrawnSet,
    exists: Array,
    truth: Array,
    reach: Array,
    least: Array,
    coarse: bool,
    dtype: torch.dtype,
) -> Batch:
    """The problems in units of their own, as tensors and numbers."""
    B, L = exists.shape
    weight, force = _units(rng, B, L, C.total is None, set_name, coarse)
    total = drawn["total"]
    stated = {
        "M": drawn["M"] * force[:, :, None] / weight[:, None, :],
        "q": drawn["q"] * force,
        "l1": drawn["l1"] * force,
        "lower": drawn["lower"] * weight,
        "upper": drawn["upper"] * weight,
    }
    if total is not None:
        stated["total"] = total * weight[:, 0]
    if C.total is not None and C.equality and rng.random() < 0.15:  # a common force, which changes nothing
        stated["q"] = stated["q"] + 4096.0 * force
    if not exists.all() and rng.random() < 0.5:  # data of what does not exist are ignored, whatever they are
        stated["q"][~exists] = np.nan
        stated["M"][~(exists[:, :, None] & exists[:, None, :])] = np.inf
    tensors: dict[str, Value | None] = {k: torch.from_numpy(v.copy()).to(dtype) for k, v in stated.items()}
    numbers = rng.random() < 0.5 or set_name == "Simplex"
    for name in ("l1", "lower", "upper", "total"):
        value = tensors.get(name)
        if isinstance(value, torch.Tensor) and numbers and bool((value == value.flatten()[0]).all()):
            number = value.flatten()[0].item()
            if not (name in ("l1", "total") and not np.isfinite(number)):
                tensors[name] = number
    cotangent = np.round(rng.normal(size=(B, L)) * 8) / 8
    return Batch(
        family=family,
        set_name=set_name,
        equality=C.equality,
        mask=None if exists.all() else torch.from_numpy(exists),
        truth=truth,
        reach=reach,
        least=np.where(truth == Truth.SOLVABLE, least, 0.0),
        weight_unit=weight,
        force_unit=force,
        cotangent=torch.from_numpy(cotangent / weight).to(dtype),
        total=tensors.pop("total", None),
        **tensors,  # pyright: ignore[reportArgumentType]
    )


def _units(rng: Rng, B: int, L: int, own: bool, set_name: str, coarse: bool) -> tuple[Array, Array]:
    """Units of weights and forces, 1e-8 to 1e8, powers of two for coarse data; without a sum each coordinate's own."""
    common = (1, 1) if rng.random() < 0.5 else (B, 1)

    def unit(shape: tuple[int, int], most: float) -> Array:
        if rng.random() < 0.4:
            return np.ones((B, L))
        exponent = rng.uniform(-most, most, shape)
        value = np.exp2(np.round(exponent * np.log2(10))) if coarse else 10.0**exponent
        return np.broadcast_to(value, (B, L))

    force, weight = unit(common, 8.0), unit(common, 8.0)
    if set_name in ("Simplex", "CappedSimplex") and rng.random() < 0.7:
        weight = np.ones((B, L))
    if own and rng.random() < 0.3:
        each = unit((B, L), 3.0)
        weight, force = weight * each, force / each
    return weight.copy(), force.copy()
