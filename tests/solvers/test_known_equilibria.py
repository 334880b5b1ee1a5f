"""Equilibria that are known in closed form."""

import pytest
import torch

from solvers import AffineVI, Box, Budget, CappedSimplex, NonNegative, Simplex, exploitability, solve


def cournot(costs, slope=1.0, size=12.0, feasible=None):
    """n firms sell ``w_i`` at the price ``size − slope · Σw`` and produce at the cost ``costs_i`` a piece."""
    n = costs.shape[-1]
    M = slope * (torch.eye(n, dtype=costs.dtype) + 1)
    return AffineVI(M, costs - size, NonNegative() if feasible is None else feasible)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 40])
def test_cournot_competition_of_equal_firms_matches_its_closed_form(n):
    costs = torch.full((n,), 2.0, dtype=torch.float64)
    solution = solve(cournot(costs, slope=0.5), on_failure="raise")
    expected = torch.full_like(costs, (12.0 - 2.0) / (0.5 * (n + 1)))
    torch.testing.assert_close(solution.weights, expected, rtol=1e-13, atol=0)  # condition number n + 1


@pytest.mark.parametrize("seed", range(5))
def test_cournot_competition_of_unequal_firms_matches_its_closed_form(seed):
    costs = 1 + torch.rand(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    w = solve(cournot(costs), on_failure="raise").weights
    expected = (12.0 + costs.sum(-1, keepdim=True)) / 6 - costs  # all firms produce, because their costs are alike
    torch.testing.assert_close(w, expected, rtol=1e-12, atol=0)


def limited_cournot(costs, capacity, size=12.0):
    """By bisection for the total: firm i produces ``clamp(size − cost_i − total, 0, capacity_i)``."""
    low, high = torch.zeros_like(costs[..., :1]), capacity.sum(-1, keepdim=True)
    for _ in range(200):
        total = 0.5 * (low + high)
        supplied = torch.minimum((size - costs - total).clamp_min(0.0), capacity)
        more = supplied.sum(-1, keepdim=True) > total
        low, high = torch.where(more, total, low), torch.where(more, high, total)
    return supplied


@pytest.mark.parametrize("seed", range(5))
def test_cournot_competition_with_capacity_limits_matches_its_closed_form(seed):
    generator = torch.Generator().manual_seed(seed)
    costs = 10 * torch.rand(50, 6, dtype=torch.float64, generator=generator)
    capacity = 0.2 + 2 * torch.rand(50, 6, dtype=torch.float64, generator=generator)
    problem = cournot(costs, feasible=Box(0.0, capacity))
    w = solve(problem, on_failure="raise").weights
    torch.testing.assert_close(w, limited_cournot(costs, capacity), rtol=0, atol=1e-13)  # numbers of the order of 10
    assert (w == capacity).any()
    assert (w == 0).any()
    assert exploitability(problem, w).max() <= 1e-10


def test_a_firm_that_leaves_lets_the_others_grow_as_the_closed_form_says_in_its_derivative():
    costs = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    w = solve(cournot(costs), on_failure="raise").weights
    (row,) = torch.autograd.grad(w[0], costs)
    torch.testing.assert_close(row, torch.tensor([-0.75, 0.25, 0.25], dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("feasible", [Box(), NonNegative(), Simplex(), CappedSimplex(0.6), Budget(0.8)], ids=str)
def test_a_nash_aggregation_game_is_not_exploitable_at_pivots_answer(feasible, seed):
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(100, 5, 8, dtype=torch.float64, generator=generator)
    a = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    G = Y @ Y.mT / 8
    problem = AffineVI((1 + a - a.T) * G + 0.01 * torch.eye(5), -G.diagonal(dim1=-2, dim2=-1), feasible, l1=0.05)
    solution = solve(problem, on_failure="raise")
    assert exploitability(problem, solution.weights).max() <= 1e-10
    assert exploitability(problem, solution.weights + 0.01).max() > 1e-6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("solver", ["pivot", "projected_gradient", "mirror_descent", "best_response"])
def test_the_literal_published_objective_is_minimised_by_the_plain_mean(seed, solver):
    """Σ_l ‖y_l − Yᵀw‖² = Σ_l ‖y_l‖² − 2 Σ_l y_l·Yᵀw + L ‖Yᵀw‖², so M = 2L YYᵀ and q = −2 Y Σ_l y_l."""
    Y = torch.randn(20, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    M, q = 2 * 4 * Y @ Y.mT, -2 * (Y @ Y.sum(-2).unsqueeze(-1)).squeeze(-1)
    w = solve(AffineVI(M, q, Simplex()), solver, on_failure="raise").weights
    torch.testing.assert_close(w, torch.full_like(w, 0.25), rtol=0, atol=1e-13 if solver == "pivot" else 1e-6)

    def literal(w):
        return (Y - (w.unsqueeze(-2) @ Y)).square().sum((-2, -1))

    for other in torch.rand(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)):
        assert (literal(w) <= literal((other / other.sum()).expand(20, 4))).all()


@pytest.mark.parametrize("solver", ["pivot", "best_response", "projected_gradient", "mirror_descent", "cvxpylayers"])
def test_a_uniform_l1_changes_nothing_on_the_simplex_and_has_no_gradient(solver):
    generator = torch.Generator().manual_seed(0)
    Y = torch.randn(5, 4, 8, dtype=torch.float64, generator=generator)
    M, q = Y @ Y.mT / 8 + 0.1 * torch.eye(4), torch.randn(5, 4, dtype=torch.float64, generator=generator)
    price = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    tight = {} if solver in ("pivot", "cvxpylayers") else {"tol": 1e-11}
    without = solve(AffineVI(M, q), solver, **tight).weights
    w = solve(AffineVI(M, q, l1=price), solver, **tight).weights
    accuracy = 1e-13 if solver == "pivot" else 1e-8
    torch.testing.assert_close(w, without, rtol=0, atol=accuracy)
    (found,) = torch.autograd.grad((w * torch.randn(5, 4, dtype=torch.float64, generator=generator)).sum(), price)
    assert abs(found.item()) <= accuracy


def test_l1_acts_on_the_simplex_where_it_differs_and_on_other_sets_where_it_does_not():
    eye, q = torch.eye(3, dtype=torch.float64), torch.tensor([-0.5, -0.4, -0.3], dtype=torch.float64)
    prices = torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)
    moved = solve(AffineVI(eye, q, l1=prices)).weights - solve(AffineVI(eye, q)).weights
    torch.testing.assert_close(moved, torch.tensor([-0.2, 0.1, 0.1], dtype=torch.float64), rtol=0, atol=1e-15)
    for feasible in (Budget(5.0), Box(), NonNegative()):
        w = solve(AffineVI(eye, q, feasible, l1=0.1)).weights
        torch.testing.assert_close(w, -q - 0.1, rtol=0, atol=1e-15)
