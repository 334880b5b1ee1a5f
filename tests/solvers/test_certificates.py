"""Certificates: zero at solutions and nowhere else, and true bounds elsewhere, by measurements of their own."""

import numpy as np
import oracle
import pytest
import torch
from problems import SETS, random_case
from scipy.optimize import minimize_scalar

from solvers import (
    AffineVI,
    Box,
    Budget,
    FeasibleSet,
    Free,
    NonNegative,
    Simplex,
    SumTo,
    duality_gap,
    exploitability,
    natural_residual,
    solve,
)
from solvers.certificates import feasibility_violation

every_set = pytest.mark.parametrize("name", SETS)


def feasible_points(case, seed, count=20):
    """Random points of the set of a batch of one problem, by projection of random vectors: mostly on its boundary."""
    data = oracle.arrays(case.problem())
    L = data["q"].shape[1]
    x = 2 * np.random.default_rng(seed).standard_normal((count, L))
    shape = {k: np.repeat(data[k], count, 0) for k in ("lower", "upper")}
    total = None if data["total"] is None else np.repeat(data["total"], count)
    return torch.from_numpy(oracle.prox(x, np.zeros_like(x), **shape, total=total, equality=data["equality"]))


def repeated(case, count):
    """The only problem of a batch, as often as there are points to certify."""
    mask = None if case.mask is None else case.mask.expand(count, -1)
    return type(case)(case.name, {k: v.expand(count, *v.shape[1:]) for k, v in case.data.items()}, mask).problem()


def objective(problem, w):
    quadratic = 0.5 * (w.unsqueeze(-2) @ problem.M @ w.unsqueeze(-1)).squeeze(-1).squeeze(-1)
    return quadratic + (problem.q * w + problem.l1 * w.abs()).sum(-1)


@every_set
def test_natural_residual_is_the_one_measured_by_bisection(name):
    case = random_case(name, 5, 1, seed=0, kind="game")
    anywhere = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = torch.cat((feasible_points(case, 0), anywhere))
    if case.mask is not None:
        points = points * case.mask
    problem = repeated(case, 40)
    ours = natural_residual(problem, points)
    np.testing.assert_allclose(ours.numpy(), oracle.natural_residual(problem, points), rtol=0, atol=1e-12)


@every_set
def test_natural_residual_is_zero_at_the_solution_only(name):
    for seed, kind in enumerate(("plain", "game")):
        case = random_case(name, 4, 3, seed, kind)
        problem = case.problem()
        w = torch.from_numpy(oracle.brute_force(problem))
        assert natural_residual(problem, w).max() <= 1e-12
        single = case.item(slice(0, 1))
        points = feasible_points(single, seed)
        away = (points - w[0]).abs().amax(-1)
        residual = natural_residual(repeated(single, len(points)), points)
        # ‖w − w*‖ ≤ (1 + ‖M‖)/μ · residual for a strongly monotone M (Facchinei and Pang, theorem 2.3.3), in norm 2
        M = single.data["M"][0]
        mu = torch.linalg.eigvalsh(0.5 * (M + M.mT))[0]
        factor = (1 + torch.linalg.matrix_norm(M, 2)) / mu * 2.0  # √L between the norms
        assert (away <= factor * residual + 1e-10).all()


@every_set
def test_duality_gap_bounds_the_suboptimality_and_vanishes_at_the_solution(name):
    for seed in range(3):
        case = random_case(name, 4, 1, seed)
        w = solve(case.problem(), on_failure="raise").weights
        assert duality_gap(case.problem(), w).abs().max() <= 1e-12
        points = feasible_points(case, seed)
        problem = repeated(case, len(points))
        gap = duality_gap(problem, points)
        suboptimality = objective(problem, points) - objective(case.problem(), w)
        rounding = 1e-12 * (1 + objective(problem, points).abs())
        assert (gap >= suboptimality - rounding).all()
        assert (suboptimality >= -rounding).all()
        near = w + 1e-6 * (points - w)
        assert (duality_gap(problem, near) <= 1e-4).all()  # continuous: slopes are of the order of 10


def unilateral_gain(problem, w, price, b):
    """The most that one player gains, each by brute-force minimisation over its own interval."""
    data = oracle.arrays(problem)
    M, q, l1 = data["M"][b], data["q"][b] + price, data["l1"][b]
    gains = []
    for i in range(len(w)):
        low, high = max(data["lower"][b, i], -1e3), min(data["upper"][b, i], 1e3)
        rest = q[i] + M[i] @ w - M[i, i] * w[i]

        def cost(v, i=i, rest=rest):
            return 0.5 * M[i, i] * v * v + rest * v + l1[i] * abs(v)

        found = [low, high, min(max(0.0, low), high)]
        for left, right in ((low, min(high, 0.0)), (max(low, 0.0), high)):
            if left < right:
                found.append(minimize_scalar(cost, bounds=(left, right), method="bounded", options={"xatol": 1e-12}).x)
        gains.append(cost(w[i]) - min(cost(v) for v in found))
    return max(gains)


@pytest.mark.parametrize("name", [name for name in SETS if name.startswith(("Box", "NonNegative", "Free"))])
def test_exploitability_without_a_shared_sum_is_the_best_unilateral_gain(name):
    case = random_case(name, 4, 1, seed=1, kind="game")
    problem = repeated(case, 6)
    points = feasible_points(case, 1, count=6)
    ours = exploitability(problem, points)
    for b in range(6):
        gain = unilateral_gain(problem, points[b].numpy(), 0.0, b)
        assert ours[b].item() == pytest.approx(gain, rel=1e-6, abs=1e-9)  # accuracy of the scalar search


@every_set
def test_exploitability_is_never_negative_and_zero_at_the_equilibrium_only(name):
    for seed, kind in enumerate(("plain", "game", "skew")):
        case = random_case(name, 4, 1, seed, kind)
        w = solve(case.problem(), on_failure="raise").weights
        assert exploitability(case.problem(), w).max() <= 1e-12
        points = feasible_points(case, seed)
        problem = repeated(case, len(points))
        gain = exploitability(problem, points)
        assert (gain >= 0).all()
        far = (points - w).abs().amax(-1) > 1e-3
        assert far.any() or SETS[name][2]
        assert (gain[far] > 0).all()


@pytest.mark.parametrize("case", ["vertex", "all capped", "total of zero", "budget of zero", "all at the kink"])
def test_certificates_vanish_at_solutions_where_no_coordinate_is_free(case):
    M = torch.eye(3, dtype=torch.float64) + 0.1
    q = torch.tensor([-4.0, -1.0, 1.0], dtype=torch.float64)
    half = torch.full((3,), 0.5, dtype=torch.float64)
    feasible, l1 = {
        "vertex": (FeasibleSet(0.0, half, 1.0), 0.0),
        "all capped": (FeasibleSet(0.0, half, 1.5), 0.0),
        "total of zero": (FeasibleSet(0.0, total=0.0), 0.0),
        "budget of zero": (Budget(0.0), 0.0),
        "all at the kink": (SumTo(0.0), 10.0),
    }[case]
    problem = AffineVI(M, q, feasible, l1=l1)
    w = solve(problem, on_failure="raise").weights
    for certificate in (natural_residual, duality_gap, exploitability, feasibility_violation):
        assert abs(certificate(problem, w).item()) <= 1e-14, certificate.__name__


def test_feasibility_violation_measures_bounds_masks_and_sums():
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    w = torch.tensor([0.7, -0.2], dtype=torch.float64)
    for feasible, expected in (
        (Box(0.0, 0.4), 0.3),
        (NonNegative(), 0.2),
        (Simplex(), 0.5),
        (SumTo(0.5), 0.0),
        (Budget(0.1), 0.4),
        (Budget(1.0), 0.2),
        (Free(), 0.0),
        (Free(mask=torch.tensor([False, True])), 0.7),
        (FeasibleSet(-1.0, 1.0, 0.2, equality=False), 0.3),
    ):
        assert feasibility_violation(AffineVI(eye, zero, feasible), w).item() == pytest.approx(expected, abs=1e-15)


@every_set
def test_every_answer_is_feasible(name):
    for seed, kind in enumerate(("plain", "game", "duplicated", "near", "uneven")):
        for L in (1, 4, 12):
            problem = random_case(name, L, 20, seed, kind).problem()
            w = solve(problem, on_failure="ignore").weights
            data = oracle.arrays(problem)
            assert (w.numpy() >= data["lower"]).all()  # bounds hold exactly …
            assert (w.numpy() <= data["upper"]).all()
            size = 1 + w.abs().amax(-1)
            assert (feasibility_violation(problem, w) <= 1e-13 * L * size).all(), kind  # … the sum up to rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["Simplex", "CappedSimplex", "SumTo", "signed sum", "Budget tensor"])
def test_the_sum_holds_to_the_rounding_of_the_weights_however_large_the_scores_are(name, dtype):
    """Softmax sums to 1 whatever its scores; so do ours."""
    for L in (1, 4, 12):
        for factor in (1.0, 1e2, 1e4, 1e6):
            case = random_case(name, L, 50, seed=4, dtype=dtype)
            problem = case.problem(q=factor * case.data["q"])
            w = solve(problem, on_failure="ignore").weights
            rounding = 8 * L * torch.finfo(dtype).eps * (w.abs().amax(-1) + 1)  # a sum of L rounded weights
            excess = feasibility_violation(problem, w) / rounding
            assert (excess <= 1).all(), f"L={L}, q × {factor:g}: {excess.max():.0f} times rounding"


def test_certificates_keep_batch_dimensions_take_half_precision_and_can_be_differentiated():
    case = random_case("signed budget", 3, (2, 4), seed=2).leaves()
    w = (0.5 * (case.data["low"] + case.data["high"])).detach().requires_grad_()
    for certificate in (natural_residual, duality_gap, exploitability):
        value = certificate(case.problem(), w)
        assert value.shape == (2, 4)
        value.sum().backward()
        assert w.grad.isfinite().all()
        assert w.grad.any()
        w.grad = None
    half = type(case)(case.name, {k: v.detach().half() for k, v in case.data.items()}).problem()
    assert natural_residual(half, w.detach().half()).dtype == torch.float32


def test_a_linear_player_without_bounds_gains_without_end_and_with_bounds_goes_to_the_best_end():
    M, q = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)
    w = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert exploitability(AffineVI(M, q, Free()), w) == torch.inf
    assert exploitability(AffineVI(M, q, Box(0.0, 1.0)), w) == 1.0
    assert exploitability(AffineVI(M, q, Box(0.0, 1.0), l1=1.5), w) == 1.25  # 0 saves 0.5·(1 + 1.5)
    assert exploitability(AffineVI(M, q, Box(-1.0, 1.0), l1=3.0), w) == 2.0


def test_certificates_refuse_what_they_cannot_certify():
    problem = random_case("Box", 3, 2, seed=3, kind="game").problem()
    with pytest.raises(ValueError, match=r"duality_gap needs a symmetric M; .*exploitability"):
        duality_gap(problem, torch.zeros(2, 3, dtype=torch.float64))
    for certificate in (natural_residual, exploitability, feasibility_violation, duality_gap):
        with pytest.raises(ValueError, match=r"weights must have shape \(2, 3\), but have shape \(3,\)"):
            certificate(problem, torch.zeros(3, dtype=torch.float64))
