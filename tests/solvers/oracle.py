"""Independent numpy oracles: brute force over all pieces, slacks, bisection, finite differences. No code of solvers."""

from itertools import product

import numpy as np
import torch


def arrays(problem):
    """The data of a problem in numpy, as the user stated it, with one batch dimension; masked weights pinned to 0."""
    C, L, batch = problem.feasible, problem.size, problem.batch_shape

    def full(value, *trailing):
        value = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
        return value.double().expand(*batch, *trailing).reshape(-1, *trailing).numpy()

    mask = np.ones((batch.numel(), L), bool) if C.mask is None else full(C.mask, L).astype(bool)
    return {
        "M": full(problem.M, L, L) * (mask[:, :, None] & mask[:, None, :]) + 0.0,
        "q": np.where(mask, full(problem.q, L), 0.0),
        "l1": np.where(mask, full(problem.l1, L), 0.0),
        "lower": np.where(mask, full(C.lower, L), 0.0),
        "upper": np.where(mask, full(C.upper, L), 0.0),
        "total": None if C.total is None else full(C.total),
        "equality": C.equality,
    }


def items(problem):
    """One dictionary of arrays per item of the batch."""
    data = arrays(problem)
    for b in range(len(data["q"])):
        yield {k: v[b] if isinstance(v, np.ndarray) else v for k, v in data.items()}


def brute_force(problem):
    """The solution of each item, found by trying every combination of pieces; ``(B, L)``. For L up to 4."""
    return np.stack([_brute_force_item(**item) for item in items(problem)])


def _brute_force_item(M, q, l1, lower, upper, total, equality):
    L, inf = len(q), np.inf
    choices = []  # (value or None if free, slope of |w| there, interval of w, interval of the force -(Mw + q) - ν)
    for low, high, weight in zip(lower, upper, l1, strict=True):
        slope_low, slope_high = weight if low >= 0 else -weight, weight if high > 0 else -weight
        own = []
        if low == high:
            own = [(low, 0.0, (low, low), (-inf, inf))]
        else:
            if low > -inf:
                own.append((low, 0.0, (low, low), (-inf, slope_low)))
            if high < inf:
                own.append((high, 0.0, (high, high), (slope_high, inf)))
            if low < 0 < high and weight > 0:
                own.append((0.0, 0.0, (0.0, 0.0), (-weight, weight)))
            if low < 0:
                own.append((None, -weight, (low, min(high, 0.0)), None))
            if high > 0:
                own.append((None, weight, (max(low, 0.0), high), None))
        choices.append(own)
    sums = [False] if total is None else [True] if equality else [False, True]
    best, least = None, inf
    for tight, pieces in product(sums, product(*choices)):
        free = np.array([piece[0] is None for piece in pieces])
        w, price = np.array([piece[0] or 0.0 for piece in pieces]), 0.0
        slope = np.array([piece[1] for piece in pieces])
        n = int(free.sum())
        rhs = -(M[free] @ w + q[free] + slope[free])
        K = M[np.ix_(free, free)]
        if tight and n:
            K = np.block([[K, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
            solution = np.linalg.solve(K, np.append(rhs, total - w.sum()))
            w[free], price = solution[:n], solution[n]
        elif n:
            w[free] = np.linalg.solve(K, rhs)
        force = -(M @ w + q)
        bands = [piece[3] or (s, s) for piece, s in zip(pieces, slope, strict=True)]
        if tight and not n:  # any price between these will do; the middle one has the most room
            low = max(f - band[1] for f, band in zip(force, bands, strict=True))
            high = min(f - band[0] for f, band in zip(force, bands, strict=True))
            if not equality:
                low, high = max(low, 0.0), max(high, 0.0)
            price = 0.5 * (low + high) if np.isfinite(low + high) else low if np.isfinite(low) else high
            price = price if np.isfinite(price) else 0.0
        wrong = [0.0]
        for i, (band, (low, high)) in enumerate(zip(bands, (piece[2] for piece in pieces), strict=True)):
            wrong += [low - w[i], w[i] - high]
            if not free[i]:
                wrong += [band[0] - (force[i] - price), (force[i] - price) - band[1]]
        if total is not None:
            wrong += [abs(w.sum() - total)] if equality or tight else [w.sum() - total]
            wrong += [-price] if tight and not equality else []
        if max(wrong) < least:
            best, least = w, max(wrong)
    scale = np.abs(M).max() + np.abs(q).max()
    assert least <= 1e-9 * max(scale, 1.0), f"the oracle found no solution: {least:.1e} at {best}, L = {L}"
    return best


def prox(x, l1, lower, upper, total, equality):
    """The proximal map of λ|·| on the set, by bisection for the price of the sum; arrays ``(B, L)``."""

    def shrunk(price):
        z = x - price[:, None]
        return np.clip(np.sign(z) * np.maximum(np.abs(z) - l1, 0.0), lower, upper)

    zero = np.zeros(len(x))
    if total is None:
        return shrunk(zero)
    finite = [np.where(np.isfinite(b), np.abs(b), 0.0).max(1) for b in (lower, upper)]
    reach = np.abs(x).max(1) + l1.max(1) + np.abs(total) + finite[0] + finite[1] + 1e-300
    low, high = -2 * reach, 2 * reach
    for _ in range(1100):  # down to neighbouring floating point numbers
        middle = 0.5 * (low + high)
        more = shrunk(middle).sum(1) > total
        low, high = np.where(more, middle, low), np.where(more, high, middle)
        if ((high - low) <= np.spacing(np.maximum(np.abs(low), np.abs(high)))).all():
            break
    price = high if equality else np.where(shrunk(zero).sum(1) <= total, 0.0, high)
    return shrunk(price)


def natural_residual(problem, weights):
    """``‖w − prox(w − Mw − q)‖_∞`` per item, by bisection."""
    data = arrays(problem)
    w = weights.detach().double().reshape(data["q"].shape).numpy()
    M, q = data.pop("M"), data.pop("q")
    x = w - (M @ w[..., None])[..., 0] - q
    return np.abs(w - prox(x, **data)).max(1)


def relative_residual(problem, weights):
    """The natural residual per item, by bisection: weights relative to their size, slopes to theirs."""
    data = arrays(problem)
    w = weights.detach().double().reshape(data["q"].shape).numpy()
    M, q, total = data.pop("M"), data.pop("q"), data["total"]
    if not isinstance(problem.feasible.lower, torch.Tensor) and problem.feasible.lower >= 0:  # λ|w| = λw on the set
        q, data["l1"] = q + data["l1"], 0.0 * q
    if total is not None and data["equality"]:  # the multiplier takes up what all entries have in common
        exists = (data["lower"] != 0) | (data["upper"] != 0)
        q = np.where(exists, q - np.where(exists, q, np.inf).min(1, keepdims=True), 0.0)
    slope = np.abs(q) + data["l1"] + (np.abs(M) @ np.abs(w)[..., None])[..., 0]
    reach = np.maximum(np.abs(data["lower"]), np.abs(data["upper"]))
    size, pull = np.abs(w), np.maximum(np.abs(q) - data["l1"], 1e-3 * (np.abs(q) + data["l1"]))
    if total is None:
        d = balance(M)
        common = np.maximum(pull / np.sqrt(d), np.sqrt(d) * size).max(1, keepdims=True) / np.sqrt(d)
    else:
        d, slope, size = np.abs(M).max((1, 2))[:, None], slope.max(1, keepdims=True), size.max(1, keepdims=True)
        with np.errstate(invalid="ignore"):  # −inf + inf: no bound
            most = data["lower"] + (total - data["lower"].sum(1))[:, None]
        reach = np.maximum(np.abs(data["lower"]), np.abs(np.fmin(data["upper"], most))).max(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            common = np.maximum(np.maximum(pull.max(1, keepdims=True) / d, np.abs(total)[:, None]), size)
    with np.errstate(divide="ignore", invalid="ignore"):
        natural = np.maximum(np.where(slope > 0, slope / d, size), size)
        a = np.where(reach > 0, np.minimum(natural, np.maximum(reach, size)), natural)
        a = np.where(common > 0, np.minimum(a, common), a)
        step = np.where((slope > 0) & np.isfinite(a) & (a > 0), a / slope, 1.0)
        data["l1"] = step * data["l1"]
        distance = np.abs(w - prox(w - step * ((M @ w[..., None])[..., 0] + q), **data))
        return np.where(distance == 0, 0.0, distance / np.where(np.isfinite(a), a, size)).max(1)


def balance(M):
    """``d`` with ``max_j max(|M_ij|, |M_ji|) / √(d_i d_j) = 1`` for all i, ``(B, L)``; 1 where all is 0."""
    S = np.maximum(np.abs(M), np.abs(M.swapaxes(1, 2)))
    own = np.sqrt(np.diagonal(S, axis1=1, axis2=2))[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        lent = np.where(own > 0, S / own, 0.0).max(2)
    e = np.where(own[:, 0] > 0, own[:, 0], np.where(lent > 0, lent, np.sqrt(S.max((1, 2)))[:, None] + (lent < 0)))
    e = np.where(e > 0, e, 1.0)
    for _ in range(60):
        rows = (S / (e[:, :, None] * e[:, None, :])).max(2)
        e = e * np.sqrt(np.where(rows > 0, rows, 1.0))
    return e * e


def tie_margin(problem, weights):
    """How far each item is from a kink of the solution map: the least slack of anything that is not active."""
    w = weights.detach().double().reshape(-1, problem.size).numpy()
    return np.array([_item_margin(w[b], **item) for b, item in enumerate(items(problem))])


def _item_margin(w, M, q, l1, lower, upper, total, equality):
    near, force = 1e-7, -(M @ w + q)
    pinned = lower == upper
    at_lower, at_upper = np.abs(w - lower) < near, np.abs(w - upper) < near
    kink = (np.abs(w) < near) & (l1 > 0) & (lower < 0) & (upper > 0)
    free = ~(at_lower | at_upper | kink)
    slack = total is not None and not equality and total - w.sum() > near
    price, margins = 0.0, []
    if total is not None and slack:
        margins.append(total - w.sum())
    elif total is not None:
        if not free.any():
            return 0.0
        price = (force - l1 * np.sign(w))[free].mean()
        margins += [] if equality else [price]
    f = force - price
    margins += [*np.abs(w - lower)[free], *np.abs(w - upper)[free]]
    margins += [*np.abs(w)[free & (l1 > 0) & (lower < 0) & (upper > 0)]]
    margins += [*(np.where(lower >= 0, l1, -l1) - f)[at_lower & ~pinned]]
    margins += [*(f - np.where(upper > 0, l1, -l1))[at_upper & ~pinned]]
    margins += [*(l1 - np.abs(f))[kink]]
    return min(margins, default=np.inf)


def directional(function, data, direction, step=1e-4):
    """Five-point central difference of ``function(**data)`` along ``direction``, a dictionary of tensors."""

    def at(t):
        return function(**{k: v.detach() + t * direction[k] if k in direction else v for k, v in data.items()}).detach()

    return (at(-2 * step) - 8 * at(-step) + 8 * at(step) - at(2 * step)) / (12 * step)


def one_sided(function, data, direction, step):
    """``(f(data + step · direction) − f(data)) / step``."""
    moved = {k: v.detach() + step * direction[k] if k in direction else v for k, v in data.items()}
    return (function(**moved).detach() - function(**data).detach()) / step
