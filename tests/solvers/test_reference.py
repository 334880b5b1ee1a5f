"""The exact solver against independent ones: cvxpylayers, scipy, and closed forms."""

import pytest
import torch
from problems import SETS, away_from_ties, random_case

from solvers import AffineVI, Box, Budget, CappedSimplex, NonNegative, Simplex, SumTo, solve

SIZES = [2, 4, 16, *(pytest.param(L, marks=pytest.mark.slow) for L in (3, 5, 8, 12))]
every_set = pytest.mark.parametrize("name", SETS)
symmetric_and_not = pytest.mark.parametrize("kind", ["plain", "game"], ids=["symmetric", "not symmetric"])


def gradients(case, solver, cotangent):
    case = case.leaves()
    w = solve(case.problem(), solver, on_failure="ignore").weights
    found = torch.autograd.grad((w * cotangent).sum(), list(case.data.values()), allow_unused=True)
    return dict(zip(case.data, found, strict=True))


@every_set
@symmetric_and_not
@pytest.mark.parametrize("L", SIZES)
def test_weights_and_every_gradient_agree_with_cvxpylayers(name, kind, L):
    case = away_from_ties(name, L, batch=2, seed=L, kind=kind)
    w = solve(case.problem(), on_failure="raise").weights
    reference = solve(case.problem(), "cvxpylayers", on_failure="ignore").weights
    torch.testing.assert_close(w, reference, rtol=0, atol=1e-9)  # SCS stops at 1e-12

    cotangent = torch.randn(L, generator=torch.Generator().manual_seed(L), dtype=torch.float64)
    ours = gradients(case, "pivot", cotangent)
    for of, expected in gradients(case, "cvxpylayers", cotangent).items():
        if expected is None:
            assert ours[of] is None or not ours[of].any(), of
            continue
        error = (ours[of] - expected).abs().max() / max(1.0, float(expected.abs().max()))
        assert error <= 1e-8, f"gradient of {of} differs by {error:.1e}"


@every_set
@symmetric_and_not
def test_the_reference_meets_its_own_default_tolerance_on_well_conditioned_problems(name, kind):
    problem = random_case(name, 4, 3, seed=1, kind=kind).problem()
    solution = solve(problem, "cvxpylayers", on_failure="raise")
    assert solution.converged.all()


@every_set
@symmetric_and_not
@pytest.mark.parametrize("L", [1, 2, 6])
def test_weights_agree_with_scipy(name, kind, L):
    problem = random_case(name, L, 3, seed=L, kind=kind).problem()
    w = solve(problem, on_failure="raise").weights
    reference = solve(problem, "scipy", on_failure="ignore").weights
    torch.testing.assert_close(reference, w, rtol=0, atol=2e-6)  # SLSQP's own accuracy on a quadratic is about 1e-7


def sparsemax(scores):
    """Martins and Astudillo 2016, algorithm 1: sort, find the support, subtract the threshold."""
    ordered = scores.sort(-1, descending=True).values
    sums, k = ordered.cumsum(-1), torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype)
    support = (1 + k * ordered > sums).sum(-1, keepdim=True)
    return (scores - (sums.gather(-1, support - 1) - 1) / support).clamp_min(0.0)


@pytest.mark.parametrize("L", [1, 2, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_identity_on_the_simplex_is_sparsemax(L, dtype):
    scores = torch.randn(200, L, generator=torch.Generator().manual_seed(L), dtype=dtype).requires_grad_()
    w = solve(AffineVI(torch.eye(L, dtype=dtype), -scores, Simplex()), on_failure="raise").weights
    expected = sparsemax(scores)
    rounding = 16 * torch.finfo(dtype).eps  # scores are of the order of 1
    torch.testing.assert_close(w, expected, rtol=0, atol=rounding)
    cotangent = torch.randn(200, L, generator=torch.Generator().manual_seed(L + 1), dtype=dtype)
    (ours,) = torch.autograd.grad((w * cotangent).sum(), scores)
    (theirs,) = torch.autograd.grad((expected * cotangent).sum(), scores)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=rounding)


def project_by_bisection(x, low, high, total):
    """The Euclidean projection on {low ≤ w ≤ high, sum = total}."""
    left, right = x - high, x - low
    left, right = left.amin(-1, keepdim=True) - 1, right.amax(-1, keepdim=True) + 1
    for _ in range(100):
        price = 0.5 * (left + right)
        too_much = (x - price).clamp(low, high).sum(-1, keepdim=True) > total
        left, right = torch.where(too_much, price, left), torch.where(too_much, right, price)
    return (x - price).clamp(low, high)


def test_identity_gives_the_euclidean_projection():
    x = 2 * torch.randn(100, 6, generator=torch.Generator().manual_seed(14), dtype=torch.float64)
    eye = torch.eye(6, dtype=torch.float64)

    def projected(feasible):
        return solve(AffineVI(eye, -x, feasible), on_failure="raise").weights

    def close(actual, expected):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)  # rounding of numbers of the order of 1

    close(projected(Box(-0.5, 0.7)), x.clamp(-0.5, 0.7))
    close(projected(NonNegative()), x.clamp_min(0.0))
    close(projected(SumTo(-2.0)), x - (x.sum(-1, keepdim=True) + 2) / 6)
    close(projected(CappedSimplex(0.25)), project_by_bisection(x, 0.0, 0.25, 1.0))
    positive = x.clamp_min(0.0)
    tight = positive.sum(-1, keepdim=True) > 3.0
    close(projected(Budget(3.0)), torch.where(tight, project_by_bisection(x, 0.0, 100.0, 3.0), positive))


def test_the_reference_compiles_one_program_per_set_and_size_and_takes_any_batch(monkeypatch):
    import cvxpylayers.torch

    case = random_case("Box signed", 3, (2, 3), seed=15)
    first = solve(case.problem(), "cvxpylayers", on_failure="ignore").weights
    monkeypatch.setattr(cvxpylayers.torch, "CvxpyLayer", None)  # a second compilation would fail
    again = solve(case.problem(), "cvxpylayers", on_failure="ignore").weights
    torch.testing.assert_close(again, first, rtol=0, atol=1e-12)  # the same program on the same numbers
    alone = solve(case.item(1, 2).problem(), "cvxpylayers", on_failure="ignore").weights
    torch.testing.assert_close(alone, first[1, 2], rtol=0, atol=1e-9)  # SCS stops at 1e-12
    single = solve(random_case("Box signed", 3, (2, 3), 15, dtype=torch.float32).problem(), "cvxpylayers")
    assert single.weights.dtype == torch.float32
    torch.testing.assert_close(single.weights.double(), first, rtol=0, atol=1e-6)  # float32 data, float64 inside
