"""Random problems of every kind: an answer carries its certificate or says that it does not."""

import numpy as np
import oracle
import pytest
import torch
from problems import KINDS, SETS, random_case

from solvers import FeasibleSet, solve

SIZES = {1: 20, 2: 20, 4: 40, 8: 20, 16: 10, 64: 1}
"""How many problems of each size make one small batch; about 28,000 in all over sets and kinds."""

every_kind = pytest.mark.parametrize("kind", KINDS)
some_sizes = pytest.mark.parametrize("sizes", [(2, 4, 16), pytest.param((1, 8, 64), marks=pytest.mark.slow)], ids=str)


def check(case, message):
    """Solved and certified, by the answer's word and by an independent measurement."""
    solution = solve(case.problem(), on_failure="ignore")
    residual = oracle.relative_residual(case.problem(), solution.weights)
    # balanced sizes agree to a few per cent, and two ways to round the same residual by less than the tolerance
    allowed = solution.tolerance.double().numpy() * 1.1
    bad = ~solution.converged | ~torch.from_numpy(residual <= allowed)
    assert not bad.any(), (
        f"{message}: {int(bad.sum())} of {len(bad)} not solved, first at {bad.nonzero()[0].tolist()}, "
        f"residual / tolerance up to {(residual / allowed).max():.1e}"
    )


@every_kind
@some_sizes
@pytest.mark.parametrize("l1", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["l1", "no l1"])
def test_every_strongly_monotone_problem_is_solved(kind, sizes, l1):
    for name in SETS:
        for L in sizes:
            with_l1 = l1 != (L in (2, 8))  # both occur in the part that always runs
            case = random_case(name, L, SIZES[L], seed=L, kind=kind, l1=with_l1)
            check(case, f"{name} L={L} seed {L} l1 {with_l1}")


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("seed", [100, 101])
def test_every_one_of_many_strongly_monotone_problems_is_solved(kind, seed):
    """More than 10⁵ over both seeds, all sets and all kinds."""
    for name in SETS:
        for L, batch in {**SIZES, 33: 2}.items():
            check(random_case(name, L, 4 * batch, seed=seed, kind=kind), f"{name} L={L} seed {seed}")


def strongly_monotone_in_float32(case):
    """The items whose matrix, rounded to float32, still has a symmetric part that float32 knows to be definite."""
    M = case.data["M"].double()
    root = M.diagonal(dim1=-2, dim2=-1).sqrt()
    M = M / (root.unsqueeze(-1) * root.unsqueeze(-2))  # definiteness does not depend on the units of each weight
    eigenvalues = torch.linalg.eigvalsh(0.5 * (M + M.mT))
    return eigenvalues[..., 0] > 1e-5 * eigenvalues[..., -1]  # 100 roundings


@every_kind
@some_sizes
def test_every_strongly_monotone_problem_is_solved_in_float32(kind, sizes):
    for name in SETS:
        for L in sizes:
            case = random_case(name, L, SIZES[L], seed=L, kind=kind, dtype=torch.float32)
            check(case.item(strongly_monotone_in_float32(case)), f"{name} L={L} seed {L}")


@every_kind
@pytest.mark.parametrize("solver", ["best_response", "projected_gradient", "mirror_descent"])
def test_an_approximate_solver_that_runs_out_of_iterations_says_so(kind, solver):
    names = ("Simplex masked", "Simplex") if solver == "mirror_descent" else ("Simplex masked", "signed budget", "Box")
    for name in names:
        problem = random_case(name, 4, 50, seed=1, kind=kind).problem()
        solution = solve(problem, solver, max_iter=24, on_failure="ignore")
        residual = oracle.relative_residual(problem, solution.weights)
        solved = residual <= solution.tolerance.numpy()
        clear = np.abs(residual / solution.tolerance.numpy() - 1) > 0.1  # rounding and balance may decide the others
        np.testing.assert_array_equal(solution.converged.numpy()[clear], solved[clear])
        assert (solution.iterations <= 24).all()


def test_a_pivot_that_runs_out_of_pivots_says_so():
    problem = random_case("signed budget", 8, 200, seed=2, kind="rank deficient").problem()
    solution = solve(problem, max_iter=1, block_pivots=1, on_failure="ignore")
    solved = oracle.relative_residual(problem, solution.weights) <= 1.1 * solution.tolerance.numpy()
    assert 0 < solution.converged.sum() < 200
    assert not (solution.converged.numpy() & ~solved).any()


def test_the_residual_has_no_unit():
    case = random_case("Box signed", 4, 20, seed=3)
    options = {"solver": "projected_gradient", "max_iter": 8, "on_failure": "ignore"}
    base = solve(case.problem(), **options).residual
    assert (base > 1e-6).any(), "all converged: the test proves nothing"
    for factor in (2.0**-20, 2.0**20):
        weights = {k: factor * case.data[k] for k in ("q", "l1", "low", "high")}
        slopes = {k: factor * case.data[k] for k in ("M", "q", "l1")}
        for data in (weights, slopes):
            assert torch.equal(solve(case.problem(**data), **options).residual, base)


@pytest.mark.parametrize("solver", ["pivot", "best_response", "projected_gradient", "cvxpylayers", "scipy"])
@pytest.mark.parametrize("name", ["NonNegative", "Budget", "Box", "Free"])
def test_where_the_solution_is_zero_a_tiny_error_still_counts_as_converged(solver, name):
    case = random_case(name, 4, 3, seed=4)
    case.data["q"] = case.data["q"].abs() if name != "Free" else 0.1 * case.data["q"]
    case.data["l1"] = case.data["l1"] + 1.0  # nothing is worth its price
    solution = solve(case.problem(), solver, on_failure="raise")
    assert solution.weights.abs().max() <= 1e-8  # the tolerance, 1e-9, relative to a problem of size 1


def test_bounds_and_totals_a_million_times_larger_or_smaller_than_q_are_handled():
    for factor in (1e-6, 1e6):
        for name in ("Box signed", "Box positive", "Budget tensor", "SumTo", "signed sum"):
            for kind in ("plain", "game", "duplicated"):
                case = random_case(name, 5, 50, seed=5, kind=kind)
                sets = {k: v if k in ("M", "q", "l1") else factor * v for k, v in case.data.items()}
                check(type(case)(name, sets), f"{name} {kind} bounds × {factor:g}")


@pytest.mark.parametrize("seed", range(3))
def test_bounds_that_are_equal_nearly_equal_or_infinite_in_any_mixture_are_handled(seed):
    generator = torch.Generator().manual_seed(seed)
    L, B = 5, 400
    case = random_case("Box signed", L, B, seed=seed, kind="game")
    width = torch.tensor([0.0, 1e-15, 1e-9, 1.0, 1e6, torch.inf], dtype=torch.float64)
    choice = torch.randint(len(width), (B, L), generator=generator)
    lower = torch.where(torch.rand(B, L, generator=generator) < 0.2, -torch.inf, case.data["low"])
    upper = torch.where(lower.isfinite(), lower, case.data["low"]) + width[choice]
    middle = torch.where(lower.isfinite() & upper.isfinite(), 0.5 * (lower + upper), torch.where(
        upper.isfinite(), upper - 0.1, lower.nan_to_num(neginf=0.0) + 0.1)).sum(-1)  # fmt: skip
    for total, equality in ((None, True), (middle, True), (middle, False)):
        data = {k: case.data[k] for k in ("M", "q", "l1")}
        feasible = FeasibleSet(lower, upper, total, equality)
        problem = type(case.problem())(data["M"], data["q"], feasible, l1=data["l1"])
        solution = solve(problem, on_failure="ignore")
        residual = oracle.relative_residual(problem, solution.weights)
        bad = ~solution.converged | ~torch.from_numpy(residual <= 2 * solution.tolerance.numpy())
        assert not bad.any(), f"total {total is not None}, equality {equality}: items {bad.nonzero()[:3, 0].tolist()}"
