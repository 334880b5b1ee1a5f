"""The natural map by itself: its residual by the definition, its sizes, and the pieces that it reads off."""

import numpy as np
import oracle
import pytest
import torch
from problems import KINDS, SETS, random_case

from solvers import AffineVI, Box, Budget, FeasibleSet, Free, NonNegative, Simplex, SumTo, solve
from solvers.natural import (
    RUNAWAY,
    TIE,
    balanced,
    natural_map,
    reach,
    relative_residual,
    sizes_of,
    stiffness,
    tolerance_of,
    without_common_slope,
)

D = torch.float64
INF = torch.inf


def vector(*numbers):
    return torch.tensor(numbers, dtype=D)


def near_solutions(problem, seed, size=0.1):
    """The solution moved a little, and not out of proportion: no slope that the data do not explain."""
    w = solve(problem, on_failure="ignore").weights
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed), dtype=w.dtype)
    largest = w.abs() if problem.feasible.total is None else w.abs().amax(-1, keepdim=True)
    return w + size * largest * noise


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["plain", "large", "uneven"])
def test_the_residual_is_the_one_of_the_definition(name, kind):
    for L in (1, 3, 6):
        problem = random_case(name, L, 8, seed=L, kind=kind, l1=name != "Box below zero").problem()
        w = near_solutions(problem, L)
        ours = relative_residual(problem.standard(), w.T).numpy()
        right = oracle.relative_residual(problem, w)
        np.testing.assert_allclose(ours, right, rtol=0.05, atol=1e-12)  # balance is found to a few per cent


@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_vanishes_at_solutions_and_nowhere_near_them(kind):
    for name in ("Simplex", "Box signed", "signed budget", "Free"):
        problem = random_case(name, 4, 6, seed=1, kind=kind).problem()
        w = solve(problem, on_failure="ignore").weights
        found = natural_map(problem.standard(), w.T, 1e-9)
        assert (found.residual <= found.tolerance).all()
        moved = natural_map(problem.standard(), near_solutions(problem, 1).T, 1e-9)
        zero = (w == 0).all(-1)
        assert ((moved.residual > moved.tolerance) | zero).all()


def test_the_residual_of_what_is_not_finite_is_nan_or_infinite_and_its_neighbours_keep_theirs():
    problem = random_case("Box signed", 3, 4, seed=2).problem()
    w = near_solutions(problem, 2).T.clone()
    base = relative_residual(problem.standard(), w)
    w[0, 1] = torch.nan
    found = relative_residual(problem.standard(), w)
    assert found[1].isnan()
    assert torch.equal(found[[0, 2, 3]], base[[0, 2, 3]])


def test_the_tolerance_is_what_was_asked_for_and_roundings():
    for dtype in (D, torch.float32):
        for L in (1, 7):
            standard = AffineVI(torch.eye(L, dtype=dtype), torch.zeros(L, dtype=dtype)).standard()
            assert tolerance_of(standard, 0.5) == 0.5 + 16 * (L + 4) * torch.finfo(dtype).eps


def test_a_common_slope_is_taken_away_only_along_a_fixed_sum():
    q = vector(3.0, -1.0, 5.0)
    eye = torch.eye(3, dtype=D)

    def rest(feasible):
        return without_common_slope(AffineVI(eye, q, feasible).standard())[:, 0].tolist()

    assert rest(Simplex()) == [4.0, 0.0, 6.0]
    assert rest(SumTo(0.0)) == [4.0, 0.0, 6.0]
    for feasible in (Budget(), Box(), Free()):
        assert rest(feasible) == q.tolist()
    assert rest(Simplex(mask=torch.tensor([True, False, True]))) == [0.0, 0.0, 2.0]
    assert rest(SumTo(0.0, mask=torch.tensor([False, False, False]))) == [0.0, 0.0, 0.0]


def test_stiffness_is_the_largest_entry_with_a_sum_and_the_diagonal_without_one():
    M = torch.tensor([[4.0, -6.0, 0.0], [1.0, 9.0, 0.5], [0.0, -0.5, 0.0]], dtype=D)
    q = torch.zeros(3, dtype=D)
    assert stiffness(AffineVI(M, q, Simplex()).standard()).tolist() == [9.0]
    assert stiffness(AffineVI(-M, q, Budget()).standard()).tolist() == [9.0]
    plain = torch.tensor([[4.0, -6.0], [1.0, 9.0]], dtype=D)
    assert stiffness(AffineVI(plain, q[:2], Free()).standard())[:, 0].tolist() == [4.0, 9.0]
    edge = torch.tensor([[4.0, 12.0], [-12.0, 9.0]], dtype=D)  # 2√(4·9), still the diagonal
    assert stiffness(AffineVI(edge, q[:2], Free()).standard())[:, 0].tolist() == [4.0, 9.0]
    beyond = torch.tensor([[4.0, 12.5], [-12.0, 9.0]], dtype=D)
    d = stiffness(AffineVI(beyond, q[:2], Free()).standard())[:, 0]
    np.testing.assert_allclose(d.numpy(), oracle.balance(beyond.unsqueeze(0).numpy())[0], rtol=0.02)
    both = AffineVI(torch.stack((plain, beyond)), q[:2], Free()).standard()  # each by itself
    assert stiffness(both)[:, 0].tolist() == [4.0, 9.0]
    torch.testing.assert_close(stiffness(both)[:, 1], d, rtol=0, atol=0)


def test_balance_makes_the_largest_entry_of_every_row_one():
    M = torch.randn(40, 5, 5, generator=torch.Generator().manual_seed(0), dtype=D)
    e = 10 ** torch.randint(-6, 7, (40, 5), generator=torch.Generator().manual_seed(1)).to(D)
    M = (M * e.unsqueeze(-1) * e.unsqueeze(-2)).movedim(0, -1)
    d = balanced(M)
    S = torch.maximum(M.abs(), M.abs().transpose(0, 1)) / (d.unsqueeze(0) * d.unsqueeze(1)).sqrt()
    torch.testing.assert_close(S.amax(1), torch.ones(5, 40, dtype=D), rtol=0.1, atol=0)
    M[2], M[:, 2] = 0.0, 0.0
    assert not balanced(M)[2].any()
    assert (balanced(M)[[0, 1, 3, 4]] > 0).all()
    torch.testing.assert_close(balanced(4.0 * M), 4.0 * balanced(M), rtol=0, atol=0)


def test_reach_is_the_largest_weight_of_the_set():
    eye, q = torch.eye(2, dtype=D), torch.zeros(2, dtype=D)
    low, high = vector(-3.0, 0.5), vector(1.0, 2.0)
    for feasible, expected in (
        (Simplex(), [1.0]),
        (Budget(0.25), [0.25]),
        (SumTo(1.0), [INF]),
        (FeasibleSet(low, high, 1.0), [3.0]),
        (FeasibleSet(vector(-0.25, 0.0), INF, 0.5), [0.75]),  # the spare beyond the lower bounds
        (FeasibleSet(vector(-0.25, 0.0), vector(0.6, 0.6), 0.5, equality=False), [0.6]),
        (Free(), [INF, INF]),
        (NonNegative(), [INF, INF]),
        (Box(low, high), [3.0, 2.0]),
        (Box(-INF, 1.0), [INF, INF]),
    ):
        assert reach(AffineVI(eye, q, feasible).standard()).flatten().tolist() == expected, feasible


def test_sizes_are_those_of_the_formula():
    M, q = torch.diag(vector(2.0, 8.0)), vector(1.0, -4.0)
    w, slope = vector(0.5, 3.0).unsqueeze(-1), vector(4.0, 8.0).unsqueeze(-1)

    def same(found, expected):
        for ours, right in zip(found, expected, strict=True):
            assert ours == pytest.approx(right, rel=1e-14)  # the roundings that one slope hands on to others

    def sizes(feasible, slope=slope, w=w, M=M, pull=100.0):
        found = sizes_of(AffineVI(M, q, feasible).standard(), w, pull * q.unsqueeze(-1), slope)
        return [x.flatten().tolist() for x in found]

    same(sizes(Free()), [[2.0, 3.0], [0.5, 0.375], [4.0, 8.0], [2.0, 8.0]])  # a = max(b/d, |w|), γ = a/b
    same(sizes(Box(-1.0, 1.0)), [[1.0, 3.0], [0.25, 0.375], [4.0, 8.0], [2.0, 8.0]])  # … at most the reach or |w|
    same(sizes(SumTo(1.0)), [[3.0], [0.375], [8.0], [8.0]])
    same(sizes(Simplex(), w=0.25 * w), [[1.0], [0.125], [8.0], [8.0]])
    same(sizes(Box(0.0, 0.0), w=0 * w), [[2.0, 1.0], [0.5, 0.125], [4.0, 8.0], [2.0, 8.0]])  # its natural size
    # in units of stiffness 1 the pulls are 1/√2 and 4/√8: nothing is larger than the latter
    assert sizes(Free(), w=0 * w, pull=1.0)[0] == pytest.approx([1.0, 0.5], rel=1e-15)
    assert sizes(SumTo(0.0), w=0 * w, pull=1.0)[0] == [0.5]
    zero = 0 * slope
    weight, step, *_ = sizes(Free(), slope=zero)
    assert weight == pytest.approx([0.5, 3.0])  # no slope anywhere: every weight is a solution
    assert step == pytest.approx([0.5, 0.125])
    weight, step, _, d = sizes(Free(), M=0 * M)
    assert d == [0.0, 0.0]
    assert weight == pytest.approx([0.5, 3.0])
    assert step == pytest.approx([0.125, 0.375])
    weight, step, *_ = sizes(Free(), M=0 * M, w=0 * w)
    assert weight == pytest.approx([4.0, 8.0])  # untouched, at 0: the slope itself
    assert step == pytest.approx([1.0, 1.0])


def test_a_missed_bound_counts_by_the_weight_and_a_missed_slope_by_the_slope():
    def residual(w, q, feasible, M=1.0):
        problem = AffineVI(torch.tensor([[M]], dtype=D), vector(q), feasible)
        return float(relative_residual(problem.standard(), vector(w).unsqueeze(-1))[0])

    assert residual(-1.5, 1.0, Box(-1.0, 1.0)) == pytest.approx(0.5 / 1.5, abs=1e-15)  # half a weight too far
    # w = 0.5 where 1 is right: slope −0.5 of b = |q| + |Mw| = 1.5 and a = b/d = 1.5
    assert residual(0.5, -1.0, Free()) == pytest.approx(0.5 / 1.5, abs=1e-15)
    assert residual(1.0, -1.0, Free()) == 0.0
    assert residual(0.0, 0.0, Free()) == 0.0
    assert residual(0.0, 1.0, NonNegative()) == 0.0
    assert residual(0.0, -1.0, NonNegative()) == pytest.approx(1.0, abs=1e-15)
    assert residual(0.0, 5.0, Box(0.0, 0.0)) == 0.0
    assert residual(0.1, 5.0, Box(0.0, 0.0)) > 1e-3


def test_weights_that_run_away_do_not_excuse_themselves():
    M, q = torch.diag(vector(0.0, 1.0)), vector(-1.0, 0.5)
    standard = AffineVI(M, q, Free()).standard()
    for far in (1e3, 1e8, 1e15):
        assert relative_residual(standard, vector(far, -0.5).unsqueeze(-1))[0] > 1e-9
    ridge = AffineVI(torch.ones(2, 2, dtype=D), vector(1.0, -1.0), Free()).standard()  # q outside the range of M
    for far in (1e3, 1e8, 1e15):
        assert relative_residual(ridge, vector(-far, far).unsqueeze(-1))[0] > 1e-9
    assert RUNAWAY > 1


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_tie_is_some_roundings_of_a_weight_wide(dtype, scale):
    """At a bound by half a tie it is held; by two ties it is free, whatever the unit of the slopes."""
    eps = torch.finfo(dtype).eps
    M = scale * torch.eye(2, dtype=dtype)
    for times, free in ((0.5, False), (2.0, True)):
        q = -scale * torch.tensor([times * TIE * eps, 1.0], dtype=dtype)
        problem = AffineVI(M, q, Box(0.0, 4.0))
        w = (-q / scale).unsqueeze(-1)
        # the first weight's own size is the reach or b/d, at most 2 |q|, so its tie is narrow: it is free either way
        assert natural_map(problem.standard(), w, 1e-9).on.free.flatten().tolist() == [True, True]
        shared = AffineVI(M, q, Budget(4.0))  # with a sum the size is that of the item
        sizes = sizes_of(shared.standard(), w, q.unsqueeze(-1), 2 * q.abs().unsqueeze(-1))
        assert float(sizes.weight[0]) == pytest.approx(2.0, rel=1e-5)
        close = -scale * torch.tensor([times * 2 * TIE * eps, 1.0], dtype=dtype)
        on = natural_map(AffineVI(M, close, Budget(4.0)).standard(), (-close / scale).unsqueeze(-1), 1e-9).on
        assert on.free.flatten().tolist() == [free, True]


def test_a_budget_that_is_just_spent_counts_as_tight_to_a_tie():
    eps = torch.finfo(D).eps
    for missing, tight in ((0.0, True), (0.5, True), (8.0, False)):
        q = vector(-0.5, -0.25)
        problem = AffineVI(torch.eye(2, dtype=D), q, Budget(0.75 + missing * TIE * eps))
        on = natural_map(problem.standard(), -q.unsqueeze(-1), 1e-9).on
        assert on.tight.tolist() == [tight]
