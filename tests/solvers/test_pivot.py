"""The exact solver: right by brute force, and unmoved by whatever should not move it."""

import numpy as np
import oracle
import pytest
import torch
from problems import KINDS, MASKED, SETS, random_case

from solvers import AffineVI, Box, Budget, FeasibleSet, Free, Simplex, SumTo, solve

every_set = pytest.mark.parametrize("name", SETS)


def weights(case_or_problem, **options):
    problem = case_or_problem.problem() if hasattr(case_or_problem, "problem") else case_or_problem
    return solve(problem, on_failure="raise", **options).weights.detach()


def assert_close(actual, expected, relative, message=""):
    """Agreement relative to the largest weight of each item, or to 1 where all are small."""
    scale = expected.abs().amax(-1, keepdim=True).clamp_min(1.0)
    error = ((actual - expected).abs() / scale).max().item() if actual.numel() else 0.0
    assert error <= relative, f"{message} differs by {error:.1e}"


@every_set
@pytest.mark.parametrize("L", [1, 2, 3, 4])
def test_weights_are_those_of_brute_force_over_all_pieces(name, L):
    for seed, kind in enumerate(KINDS):
        problem = random_case(name, L, 4 if L < 4 else 2, seed, kind).problem()
        expected = torch.from_numpy(oracle.brute_force(problem))
        # ridges go down to 1e-8 of M, and a q of 1e6 is rounded to 1e-10: rounding may move the weights by this much
        relative = {"rank deficient": 1e-8, "far": 1e-8}.get(kind, 1e-10)
        assert_close(weights(problem), expected, relative, f"{kind}, seed {seed}:")


@every_set
@pytest.mark.parametrize("l1", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["l1", "no l1"])
def test_residual_measured_by_bisection_is_rounding_for_up_to_64_coordinates(name, l1):
    for L, batch in ((5, 20), (16, 10), (64, 2)):
        for seed, kind in enumerate(("plain", "skew", "duplicated")):
            problem = random_case(name, L, batch, seed, kind, l1=l1).problem()
            w = weights(problem)
            size = float(problem.q.abs().max() + problem.M.abs().sum(-1).max() * w.abs().max())
            residual = oracle.natural_residual(problem, w).max()
            assert residual <= 1e-13 * L * size, f"L={L} {kind} seed {seed}: {residual:.1e}"  # a sum of L roundings


@every_set
def test_the_safeguard_alone_gives_the_same_answer_as_the_block_pivots(name):
    for seed, kind in enumerate(("plain", "game", "skew", "duplicated", "uneven", "large", "small")):
        case = random_case(name, 6, 10, seed, kind)
        alone = weights(case, block_pivots=1)
        assert_close(alone, weights(case), 1e-9, f"{kind}, seed {seed}:")  # "duplicated" has condition 1e5


@every_set
def test_a_batch_equals_a_loop_over_its_items(name):
    for seed, kind in enumerate(("plain", "game", "duplicated", "uneven")):
        case = random_case(name, 4, (2, 5), seed, kind)
        together = solve(case.problem(), on_failure="raise")
        for i in range(2):
            for j in range(5):
                alone = solve(case.item(i, j).problem(), on_failure="raise")
                message = f"{kind}, seed {seed}, item {(i, j)}:"
                assert_close(together.weights[i, j], alone.weights, 1e-10, message)  # other summation order, cond. 1e5
                assert together.iterations[i, j] == alone.iterations


def test_a_large_batch_equals_a_loop_over_small_ones():
    case = random_case("Simplex", 4, 2000, seed=3)  # large batches are eliminated elementwise, small ones by LAPACK
    together = weights(case)
    parts = [weights(case.item(slice(start, start + 100))) for start in range(0, 2000, 100)]
    assert_close(together, torch.cat(parts), 1e-11)  # condition number below 1e3, in double precision


def test_a_large_batch_with_ties_and_hard_items_does_not_change_its_easy_neighbours():
    easy, hard = (random_case("Simplex", 8, 300, seed=4, kind=kind).data for kind in ("plain", "rank deficient"))
    both = {k: torch.cat([easy[k], hard[k]]) for k in easy}
    alone = solve(AffineVI(easy["M"], easy["q"], l1=easy["l1"])).weights
    mixed = solve(AffineVI(both["M"], both["q"], l1=both["l1"])).weights[:300]
    assert_close(mixed, alone, 1e-11)  # the two batch sizes are eliminated in different orders


@pytest.mark.parametrize("name", sorted(set(SETS) - {*MASKED, "Box half open"}))  # those sets have labels themselves
def test_relabelling_the_coordinates_relabels_the_weights(name):
    case = random_case(name, 7, 10, seed=5, kind="game")
    order = torch.randperm(7, generator=torch.Generator().manual_seed(5))
    data = case.data
    moved = {k: v[..., order] for k, v in data.items() if v.ndim == 2} | {"M": data["M"][:, order][:, :, order]}
    assert_close(weights(case.problem(**moved)), weights(case)[:, order], 1e-11)  # well-conditioned


@every_set
def test_multiplying_m_q_and_l1_by_a_power_of_two_changes_no_bit(name):
    case = random_case(name, 5, 20, seed=6, kind="game")
    scaled = {k: 2.0**40 * case.data[k] for k in ("M", "q", "l1")}
    assert torch.equal(weights(case.problem(**scaled)), weights(case))


@pytest.mark.parametrize("factor", [1e-30, 1e-8, 1e8, 1e30])
def test_the_unit_of_the_objective_does_not_matter(factor):
    for name in SETS:
        case = random_case(name, 4, 10, seed=7)
        scaled = {k: factor * case.data[k] for k in ("M", "q", "l1")}
        assert_close(weights(case.problem(**scaled)), weights(case), 1e-11, name)


@pytest.mark.parametrize("name", ["Simplex", "CappedSimplex", "SumTo", "signed sum"])
def test_a_constant_added_to_q_changes_nothing_where_the_sum_is_fixed(name):
    case = random_case(name, 5, 20, seed=8)
    assert_close(weights(case.problem(q=case.data["q"] + 3.0)), weights(case), 1e-11)


@pytest.mark.parametrize("name", MASKED)
def test_masked_coordinates_weigh_exactly_nothing_and_their_data_do_not_matter(name):
    case = random_case(name, 6, 20, seed=9)
    w = weights(case)
    assert (w[~case.mask] == 0).all()
    gone = ~case.mask
    M = case.data["M"].masked_fill(gone.unsqueeze(-1) | gone.unsqueeze(-2), torch.nan)
    garbage = {"M": M, "q": case.data["q"].masked_fill(gone, torch.inf)}
    garbage["l1"] = case.data["l1"].masked_fill(gone, torch.nan)
    assert torch.equal(weights(case.problem(**garbage)), w)


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_problem_equals_the_smaller_problem_without_those_coordinates(name):
    case = random_case(name, 6, 8, seed=10)
    w = weights(case)
    for b in range(8):
        keep = case.mask[b].nonzero()[:, 0]
        small = {k: v[b, keep] if v.ndim == 2 else v[b] for k, v in case.data.items()}
        small["M"] = case.data["M"][b][keep][:, keep]
        item = case.item(b)
        smaller = type(item)(item.name, small)
        assert_close(weights(smaller), w[b, keep], 1e-12)


def test_a_slack_budget_changes_nothing_and_a_tight_one_is_spent():
    case = random_case("NonNegative", 4, 100, seed=11)
    free = weights(case)
    for total in (0.05, 0.5, 5.0):
        w = weights(AffineVI(case.data["M"], case.data["q"], Budget(total), l1=case.data["l1"]))
        slack = free.sum(-1) <= total
        assert_close(w[slack], free[slack], 1e-12)
        torch.testing.assert_close(w[~slack].sum(-1), torch.full_like(w[~slack, 0], total), rtol=1e-14, atol=0)


def test_free_is_a_linear_solve_and_sum_to_a_kkt_system():
    case = random_case("Free", 5, 20, seed=12, kind="skew", l1=False)
    M, q = case.data["M"], case.data["q"]
    assert_close(weights(AffineVI(M, q, Free())), -torch.linalg.solve(M, q), 1e-12)
    one = torch.ones(20, 5, 1, dtype=M.dtype)
    K = torch.cat((torch.cat((M, one), 2), torch.cat((one.mT, torch.zeros(20, 1, 1, dtype=M.dtype)), 2)), 1)
    rhs = torch.cat((-q, torch.full((20, 1), 0.3, dtype=M.dtype)), 1)
    assert_close(weights(AffineVI(M, q, SumTo(0.3))), torch.linalg.solve(K, rhs)[:, :5], 1e-12)


def test_identity_with_l1_is_soft_thresholding_and_a_box_clips():
    q = torch.tensor([-3.0, -0.5, 0.2, 2.0], dtype=torch.float64)
    soft = torch.tensor([2.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.equal(weights(AffineVI(eye, q, Free(), l1=1.0)), soft)
    assert torch.equal(weights(AffineVI(eye, q, Box(-0.5, 1.5), l1=1.0)), soft.clamp(-0.5, 1.5))


@pytest.mark.parametrize("L", [1, 2, 5])
def test_sets_of_a_single_point_give_that_point(L):
    point = torch.linspace(-1.0, 1.0, L, dtype=torch.float64)
    M = torch.eye(L, dtype=torch.float64) + 0.1
    q = torch.randn(3, L, dtype=torch.float64, generator=torch.Generator().manual_seed(13))
    for feasible in (Box(point, point), FeasibleSet(point, point, point.sum()), FeasibleSet(point, 2.0, point.sum())):
        assert_close(weights(AffineVI(M, q, feasible, l1=0.3)), point.expand(3, L), 1e-14)
    zero = torch.zeros(3, L, dtype=torch.float64)
    assert_close(weights(AffineVI(M, q, Budget(0.0))), zero, 0.0)
    assert_close(weights(AffineVI(M, q, FeasibleSet(lower=0.0, total=0.0))), zero, 0.0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_monotone_problems_without_a_ridge_get_one_of_their_solutions(seed):
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(30, 6, 3, generator=generator, dtype=torch.float64)
    game = torch.randn(30, 6, 6, generator=generator, dtype=torch.float64)
    q = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    for M in (Y @ Y.mT, game - game.mT, Y @ Y.mT + game - game.mT, torch.zeros_like(game)):
        for feasible in (Simplex(), Box(), Budget(0.5), FeasibleSet(-1.0, 1.0, 0.3)):
            problem = AffineVI(M, q, feasible, l1=0.1)
            solution = solve(problem, on_failure="raise")
            residual = oracle.natural_residual(problem, solution.weights)
            np.testing.assert_array_less(residual, 1e-8)  # the documented tolerance, 1e-9, times the size of M
