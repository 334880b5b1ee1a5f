"""Monotonicity by itself, against numpy's eigenvalues along the directions that the set allows."""

import numpy as np
import pytest
import torch

from solvers import AffineVI, Box, Budget, FeasibleSet, Free, NonNegative, Simplex, SumTo
from solvers.monotone import has_cholesky, is_monotone, is_strongly_monotone

D = torch.float64


def least_eigenvalue(M, moves, fixed_sum):
    """Of ``Zᵀ ½(M + Mᵀ) Z`` with a basis ``Z`` of the directions, relative to the largest entry; inf without any."""
    basis = np.eye(len(M))[:, moves]
    if fixed_sum and basis.shape[1]:
        basis = basis @ np.linalg.svd(np.ones((1, basis.shape[1])))[2][1:].T
    if basis.shape[1] == 0:
        return np.inf
    S = 0.5 * (M + M.T)
    return np.linalg.eigvalsh(basis.T @ S @ basis)[0] / np.abs(M).max()


def shifted(L, count, seed, fixed_sum=False):
    """Matrices of random least eigenvalue of either sign, half of them not symmetric."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(count, *shape, generator=generator, dtype=D)

    Y, A = normal(L, L), normal(L, L)
    S = Y @ Y.mT
    least = torch.linalg.eigvalsh(S)[:, 0]
    push = torch.tensor([-0.5, -1e-3, -1e-6, 1e-6, 1e-3, 0.5], dtype=D)[torch.arange(count) % 6]
    M = S + (push - least)[:, None, None] * torch.eye(L, dtype=D)
    M = M + (torch.arange(count) % 2)[:, None, None] * (A - A.mT)
    if fixed_sum:  # what lies along 1, and only there, may have any curvature
        M = M + normal(L, 1) + normal(1, L)
    return M


SETS = {
    "free": (lambda L: Free(), False),
    "w ≥ 0": (lambda L: NonNegative(), False),
    "box": (lambda L: Box(-1.0, 1.0), False),
    "budget": (lambda L: Budget(1.0), False),
    "signed budget": (lambda L: FeasibleSet(-1.0, 1.0, 0.5, equality=False), False),
    "simplex": (lambda L: Simplex(), True),
    "sum": (lambda L: SumTo(2.0), True),
    "signed sum": (lambda L: FeasibleSet(-1.0, 1.0, 0.5), True),
}


def checked(M, feasible, moves, fixed_sum, dtype=D):
    """Ours beside numpy's, for those whose sign is clear."""
    L = M.shape[-1]
    problem = AffineVI(M.to(dtype), torch.zeros(L, dtype=dtype), feasible)
    ours = is_monotone(problem.standard()).numpy()
    least = np.array([least_eigenvalue(M[b].numpy(), moves[b], fixed_sum) for b in range(len(M))])
    margin = 1e-9 if dtype == D else 1e-5 * L
    clear = np.abs(least) > margin
    np.testing.assert_array_equal(ours[clear], least[clear] > 0)
    return least[clear]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
def test_the_sign_is_that_of_the_least_eigenvalue_along_the_set(name, dtype):
    build, fixed_sum = SETS[name]
    for L in (1, 2, 3, 5, 16, 17, 24):
        M = shifted(L, 24, seed=L, fixed_sum=fixed_sum)
        least = checked(M, build(L), np.ones((24, L), bool), fixed_sum, dtype)
        if L > 1:
            assert (least > 0).any()
            assert (least < 0).any()


@pytest.mark.parametrize("fixed_sum", [False, True], ids=["no sum", "fixed sum"])
def test_pinned_and_missing_coordinates_do_not_count(fixed_sum):
    for L, seed in ((3, 0), (5, 1), (18, 2)):
        generator = torch.Generator().manual_seed(seed)
        M = shifted(L, 30, seed, fixed_sum)
        M[::2] -= 0.5 * L * torch.eye(L, dtype=D)  # so that a part of it is indefinite too
        moves = torch.rand(30, L, generator=generator) < 0.6
        low = torch.where(moves, -1.0, 0.25).to(D)
        high = torch.where(moves, 1.0, 0.25).to(D)
        total = torch.zeros(30, dtype=D) if fixed_sum else None
        least = checked(M, FeasibleSet(low, high, total), moves.numpy(), fixed_sum)
        assert (least > 0).any()
        assert (least < 0).any()
        masked = FeasibleSet(-1.0, 1.0, 0.0 if fixed_sum else None, mask=moves)
        checked(M, masked, moves.numpy(), fixed_sum)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_units_do_not_matter(scale):
    for name in ("free", "simplex"):
        build, fixed_sum = SETS[name]
        M = shifted(4, 24, seed=1, fixed_sum=fixed_sum)
        standard = AffineVI(M, torch.zeros(4, dtype=D), build(4)).standard()
        other = AffineVI(scale * M, torch.zeros(4, dtype=D), build(4)).standard()
        assert torch.equal(is_monotone(other), is_monotone(standard))
        assert torch.equal(is_strongly_monotone(other), is_strongly_monotone(standard))


def test_coordinates_may_have_their_own_units_where_there_is_no_sum():
    M = shifted(4, 48, seed=3)
    e = torch.tensor([1e-9, 1.0, 1e6, 1e-3], dtype=D)
    found = is_monotone(AffineVI(M * e[:, None] * e, torch.zeros(4, dtype=D), Free()).standard())
    assert torch.equal(found, is_monotone(AffineVI(M, torch.zeros(4, dtype=D), Free()).standard()))


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
def test_semidefinite_matrices_are_monotone_to_rounding_and_not_beyond(dtype):
    eps = torch.finfo(dtype).eps
    for L, rank in ((2, 1), (4, 2), (8, 3), (16, 15), (20, 4)):
        Y = torch.randn(50, L, rank, generator=torch.Generator().manual_seed(L), dtype=D)
        M = Y @ Y.mT
        for build in (Free(), Simplex(), Budget()):
            assert is_monotone(AffineVI(M.to(dtype), torch.zeros(L, dtype=dtype), build).standard()).all()
        beyond = M - 1e3 * L * eps * M.abs().amax((1, 2), keepdim=True) * torch.eye(L, dtype=D)
        problem = AffineVI(beyond.to(dtype), torch.zeros(L, dtype=dtype), Box(-1.0, 1.0))
        assert not is_monotone(problem.standard()).any()
    zero = AffineVI(torch.zeros(3, 3, dtype=dtype), torch.zeros(3, dtype=dtype), Free()).standard()
    assert is_monotone(zero).all()


@pytest.mark.parametrize("diagonal", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_a_flat_direction_is_monotone_but_not_strongly(diagonal):
    problem = AffineVI(torch.diag(torch.tensor(diagonal, dtype=D)), torch.zeros(2, dtype=D), Free()).standard()
    assert is_monotone(problem).all()
    assert not is_strongly_monotone(problem).any()


def test_nan_is_not_monotone_and_leaves_its_neighbours_alone():
    for L in (3, 17):
        M = torch.eye(L, dtype=D).expand(4, L, L).clone()
        M[1, 0, 1], M[2, 2, 2] = torch.nan, torch.nan
        for feasible in (Free(), Simplex()):
            found = is_monotone(AffineVI(M, torch.zeros(L, dtype=D), feasible).standard())
            assert found.tolist() == [True, False, False, True]


def test_strongly_monotone_asks_for_a_margin():
    def strongly(M, feasible):
        return bool(is_strongly_monotone(AffineVI(M, torch.zeros(2, dtype=D), feasible).standard())[0])

    for correlation, expected in ((0.0, True), (1 - 1e-6, True), (1 - 1e-11, False), (1.0, False), (1.1, False)):
        M = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=D)
        assert strongly(M, Free()) == expected
        assert strongly(-M + 2 * torch.eye(2, dtype=D), Free()) == expected
    ones = torch.ones(2, 2, dtype=D)
    assert not strongly(ones, SumTo(1.0))
    assert strongly(torch.eye(2, dtype=D) - 3 * ones, SumTo(1.0))  # −3 along 1, 1 across


@pytest.mark.parametrize("L", [1, 2, 5, 16, 17])
def test_has_cholesky_says_whether_numpy_finds_one(L):
    M = shifted(L, 30, seed=10 + L).movedim(0, -1)
    for times in (1.0, 1.25, 0.5):
        found = has_cholesky(M, None, False, times)
        for b in range(30):
            S = 0.5 * (M[..., b] + M[..., b].T).numpy()
            S = S + (times - 1) * np.diag(np.diag(S))
            assert bool(found[b]) == (np.linalg.eigvalsh(S)[0] > 0)


def test_has_cholesky_takes_a_zero_pivot_only_with_a_zero_column():
    def found(*rows):
        return bool(has_cholesky(torch.tensor(rows, dtype=D).unsqueeze(-1), None, False, 1.0)[0])

    assert found([0.0, 0.0], [0.0, 1.0])
    assert not found([0.0, 1.0], [1.0, 1.0])
    assert found([1.0, 1.0], [1.0, 1.0])
    assert not found([1.0, 0.0], [0.0, -1e-30])
    assert not found([-1.0, 0.0], [0.0, 1.0])
