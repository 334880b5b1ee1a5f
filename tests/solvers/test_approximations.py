"""The approximate solvers: they find what the exact one finds, and unrolled they approach it at a linear rate."""

import math

import pytest
import torch
from problems import SETS, away_from_ties, random_case

from solvers import AffineVI, Box, FeasibleSet, NonNegative, Simplex, solve

SIMPLEX_ONLY = {"mirror_descent": ("Simplex", "Simplex masked")}
METHODS = {
    "best_response": {"solver": "best_response"},
    "projected_gradient": {"solver": "projected_gradient"},
    "plain projected_gradient": {"solver": "projected_gradient", "accelerate": False},
    "mirror_descent": {"solver": "mirror_descent"},
}
every_method = pytest.mark.parametrize("method", METHODS)


def sets_of(method):
    return SIMPLEX_ONLY.get(METHODS[method]["solver"], tuple(SETS))


@every_method
@pytest.mark.parametrize("kind", ["plain", "game", pytest.param("skew", marks=pytest.mark.slow)])
def test_run_to_their_tolerance_they_agree_with_pivot(method, kind):
    for name in sets_of(method):
        problem = random_case(name, 4, 4, seed=0, kind=kind).problem()
        if method == "best_response" and kind != "plain":  # otherwise its damping μ/ℓ² is tiny
            problem = AffineVI(problem.M + 3 * torch.eye(4), problem.q, problem.feasible, problem.l1)
        exact = solve(problem, on_failure="raise").weights
        solution = solve(problem, tol=1e-8, on_failure="ignore", **METHODS[method])
        assert solution.converged.all(), f"{name}: {int((~solution.converged).sum())} of 4 did not converge"
        # ‖w − w*‖ ≤ (1 + ‖M‖)/μ · residual, at most a few hundred here
        torch.testing.assert_close(solution.weights, exact, rtol=0, atol=5e-6, msg=name)


def unrolled(case, cotangent, steps, method):
    """Weights and the gradient of every tensor after a fixed number of steps, differentiated through the steps."""
    case = case.leaves()
    options = METHODS[method] | {"gradient": "unrolled", "unroll": steps} if steps else {}
    w = solve(case.problem(), on_failure="ignore", **options).weights
    found = torch.autograd.grad((w * cotangent).sum(), list(case.data.values()), allow_unused=True)
    return w.detach(), torch.cat([g.flatten() for g in found if g is not None])


def rate(errors, steps):
    """The factor per step of a least squares line through log(error) over the steps above rounding."""
    points = [(k, math.log(e)) for k, e in zip(steps, errors, strict=True) if e > 1e-11]
    mean_k, mean_e = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((k - mean_k) * (e - mean_e) for k, e in points) / sum((k - mean_k) ** 2 for k, _ in points)
    return math.exp(slope)


def assert_linear_convergence(name, method, seed, steps, slowest):
    case = away_from_ties(name, 4, 1, seed, kind="plain", margin=0.05)
    case.data["M"] += 0.5 * torch.eye(4, dtype=torch.float64)
    cotangent = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact, gradient = unrolled(case, cotangent, 0, method)
    errors = {"weights": [], "gradient": []}
    for k in steps:
        w, g = unrolled(case, cotangent, k, method)
        errors["weights"].append(float((w - exact).abs().max()))
        errors["gradient"].append(float((g - gradient).abs().max()))
    for what, values in errors.items():
        found = rate(values, steps) if sum(e > 1e-11 for e in values) > 1 else 0.0
        print(f"{method} on {name}, seed {seed}: {what} error × {found:.3f} a step, {values[-1]:.1e} after {steps[-1]}")
        assert found < slowest, f"{what}: {values}"
        assert values[-1] <= max(1e-2 * values[0], 1e-9), f"{what}: {values}"


ROUNDS = {"best_response": 0.95, "projected_gradient": 0.95, "plain projected_gradient": 0.97, "mirror_descent": 0.99}
"""The slowest fitted rate that counts as linear; the problems have condition numbers of about 5."""


@every_method
@pytest.mark.parametrize("seed", range(2))
def test_unrolled_weights_and_gradients_approach_the_exact_ones_at_a_linear_rate(method, seed):
    for name in ("Simplex",) if method == "mirror_descent" else ("Simplex", "signed budget", "Box signed"):
        steps = (20, 50, 100, 200, 400) if method == "mirror_descent" else (10, 25, 50, 100)
        assert_linear_convergence(name, method, seed, steps, ROUNDS[method])


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("seed", range(20))
def test_unrolled_convergence_over_twenty_seeds(method, seed):
    entropic = method == "mirror_descent"
    for name in ("Simplex", "Simplex masked") if entropic else ("CappedSimplex tensor", "Box signed", "signed budget"):
        steps = (100, 200, 400, 800, 1600) if entropic else (10, 25, 50, 100, 200)
        assert_linear_convergence(name, method, seed, steps, 0.999 if entropic else 0.99)


@every_method
def test_one_step_gradients_are_those_of_one_more_step_from_the_answer(method):
    """Bolte, Pauwels and Vaiter 2023: the error is at most the contraction factor times the size of the gradient."""
    name = "Simplex" if method == "mirror_descent" else "signed budget"
    case = away_from_ties(name, 4, 3, seed=1, margin=0.05)
    case.data["M"] += 2.0 * torch.eye(4, dtype=torch.float64)
    cotangent = torch.randn(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradient(**options):
        leaves = case.leaves()
        w = solve(leaves.problem(), on_failure="ignore", **options).weights
        return w.detach(), torch.autograd.grad((w * cotangent).sum(), leaves.data["q"])[0]

    w, one = gradient(**METHODS[method], gradient="one_step", tol=1e-10)
    exact, full = gradient()
    torch.testing.assert_close(w, exact, rtol=0, atol=1e-7)
    assert (one - full).norm() < full.norm()
    assert torch.nn.functional.cosine_similarity(one.flatten(), full.flatten(), dim=0) > 0.5


@pytest.mark.parametrize("name", ["Box signed", "Simplex", "signed sum", "signed budget", "Free masked"])
def test_one_step_of_best_response_is_exact_where_the_players_do_not_couple(name):
    case = away_from_ties(name, 4, 3, seed=3, margin=0.02)
    case.data["M"] = torch.diag_embed(case.data["M"].diagonal(dim1=-2, dim2=-1))
    cotangent = torch.randn(4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def gradients(**options):
        leaves = case.leaves()
        w = solve(leaves.problem(), on_failure="raise", **options).weights
        return torch.autograd.grad((w * cotangent).sum(), [v for k, v in leaves.data.items() if k != "M"])

    for one, full in zip(gradients(solver="best_response", gradient="one_step"), gradients(), strict=True):
        torch.testing.assert_close(one, full, rtol=1e-9, atol=1e-9)  # a solution right to 1e-9 on the same pieces


def test_gauss_seidel_agrees_with_pivot_and_needs_fewer_rounds_than_jacobi():
    for kind in ("plain", "rank deficient"):
        for name in ("Box", "Box signed", "Box half open", "NonNegative", "NonNegative masked", "Free"):
            case = random_case(name, 4, 20, seed=2, kind=kind)
            case.data["M"] += 0.1 * torch.eye(4, dtype=torch.float64)
            problem = case.problem()
            swept = solve(problem, "best_response", sweep="gauss_seidel", on_failure="raise")
            exact = solve(problem, on_failure="raise").weights
            torch.testing.assert_close(swept.weights, exact, rtol=0, atol=1e-6)  # tolerance 1e-9, condition 1e2
            jacobi = solve(problem, "best_response", on_failure="raise")
            assert swept.iterations.double().mean() < jacobi.iterations.double().mean()


def test_gauss_seidel_is_written_player_by_player():
    """Two rounds against a loop in plain Python."""
    case = random_case("NonNegative", 3, (1,), seed=3, kind="game")
    M, q, l1 = (case.data[k][0] for k in ("M", "q", "l1"))
    w = torch.zeros(3, dtype=torch.float64)
    for _ in range(2):
        for i in range(3):
            rest = q[i] + M[i] @ w - M[i, i] * w[i]
            w[i] = torch.clamp(-(rest + l1[i]) / M[i, i], min=0.0)
    problem = AffineVI(M, q, NonNegative(), l1=l1)
    found = solve(problem, "best_response", sweep="gauss_seidel", unroll=2).weights
    torch.testing.assert_close(found, w, rtol=1e-14, atol=1e-15)


def test_damping_mixes_the_reply_with_the_weights_and_lets_a_diverging_game_converge():
    M = torch.tensor([[1.0, 2.0], [-2.0, 1.0]], dtype=torch.float64)  # replies rotate by 2: undamped they spiral out
    problem = AffineVI(M, torch.tensor([-1.0, 0.5], dtype=torch.float64), Box(-100.0, 100.0))
    assert not solve(problem, "best_response", damping=1.0, max_iter=200, on_failure="ignore").converged
    damped = solve(problem, "best_response", damping=0.3, on_failure="raise")
    automatic = solve(problem, "best_response", on_failure="raise")
    exact = solve(problem, on_failure="raise").weights
    for solution in (damped, automatic):
        torch.testing.assert_close(solution.weights, exact, rtol=0, atol=1e-8)
    full, half = (solve(problem, "best_response", damping=d, unroll=1).weights for d in (1.0, 0.5))
    torch.testing.assert_close(half, 0.5 * full, rtol=0, atol=1e-15)  # from 0


@every_method
def test_a_batch_equals_a_loop_over_its_items(method):
    name = "Simplex masked" if method == "mirror_descent" else "signed budget"
    for kind in ("plain", "game"):
        case = random_case(name, 4, 8, seed=4, kind=kind)
        together = solve(case.problem(), tol=1e-6, max_iter=1000, on_failure="ignore", **METHODS[method])
        assert len(together.iterations.unique()) > 1
        for b in range(8):
            item = case.item(slice(b, b + 1)).problem()
            alone = solve(item, tol=1e-6, max_iter=1000, on_failure="ignore", **METHODS[method])
            assert together.iterations[b] == alone.iterations[0]
            torch.testing.assert_close(together.weights[b], alone.weights[0], rtol=0, atol=1e-12)  # summation order


def test_a_mixed_batch_treats_symmetric_and_other_items_as_each_alone():
    plain, game = (random_case("Simplex", 4, 5, seed=5, kind=kind) for kind in ("plain", "game"))
    both = {k: torch.cat((plain.data[k], game.data[k])) for k in plain.data}
    mixed = type(plain)("Simplex", both)
    for method in METHODS.values():
        for steps in ({}, {"unroll": 30}):
            together = solve(mixed.problem(), on_failure="ignore", **method, **steps).weights
            apart = [solve(c.problem(), on_failure="ignore", **method, **steps).weights for c in (plain, game)]
            torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-12)  # the same steps


def test_acceleration_helps_on_badly_conditioned_problems():
    case = random_case("Simplex", 8, 20, seed=6)
    case.data["M"] = case.data["M"] - 0.09 * torch.eye(8, dtype=torch.float64)
    fast, slow = (solve(case.problem(), "projected_gradient", accelerate=a, on_failure="ignore") for a in (True, False))
    assert 2 * fast.iterations.double().mean() < slow.iterations.double().mean()


def test_mirror_descent_takes_a_simplex_of_any_total_and_stays_positive():
    case = random_case("Simplex", 4, 10, seed=7)
    feasible = FeasibleSet(lower=0.0, total=3.0)
    problem = AffineVI(case.data["M"], case.data["q"], feasible)
    few = solve(problem, "mirror_descent", unroll=3).weights
    assert (few > 0).all()
    torch.testing.assert_close(few.sum(-1), torch.full((10,), 3.0, dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(solve(problem, "mirror_descent", tol=1e-8, max_iter=100_000).weights,
                               solve(problem).weights, rtol=0, atol=1e-5)  # fmt: skip
    assert solve(AffineVI(case.data["M"], case.data["q"], Simplex()), "mirror_descent", unroll=1).weights.min() > 0
