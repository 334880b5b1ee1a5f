"""The digits of an item are its own: what stands beside it in the batch changes no bit of them."""

import pytest
import torch
from problems import SETS, random_case

from solvers import AffineVI, Simplex, available_solvers, solve
from solvers.sums import ordered_sum

ONE_AT_A_TIME = ("cvxpylayers", "scipy")


def in_two_companies(data, kept):
    """Two batches with the same first ``kept`` items; the others are easy in one of them."""
    eye = torch.eye(data["q"].shape[-1], dtype=data["q"].dtype)
    inside = torch.arange(len(data["q"])) < kept
    M = torch.where(inside[:, None, None], data["M"], eye)
    q = torch.where(inside[:, None], data["q"], data["q"].roll(1, 0))
    return (data["M"], data["q"]), (M, q)


def gram_problems(L, B, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(B, L, 6, generator=generator, dtype=torch.float64)
    M = Y @ Y.mT / 6 + 0.01 * torch.eye(L, dtype=torch.float64)
    return {"M": M.to(dtype), "q": torch.randn(B, L, generator=generator, dtype=torch.float64).to(dtype)}


@pytest.mark.parametrize("solver", [flag for flag in available_solvers() if flag not in ONE_AT_A_TIME])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("L", "B"), [(3, 40), (4, 1300), (5, 1300), (9, 300), (17, 60)])
def test_other_neighbours_change_no_bit(solver, dtype, L, B):
    first, second = in_two_companies(gram_problems(L, B, dtype), B // 2)
    weights = [
        solve(
            AffineVI(M, q, feasible=Simplex(), symmetric=True), solver=solver, max_iter=200, on_failure="ignore"
        ).weights
        for M, q in (first, second)
    ]
    assert torch.equal(weights[0][: B // 2], weights[1][: B // 2])


@pytest.mark.parametrize("name", SETS)
def test_other_neighbours_change_no_bit_on_any_set(name):
    case = random_case(name, 6, 700, seed=3, kind="game")
    first, second = in_two_companies(case.data, 350)
    weights = [solve(case.problem(M=M, q=q), on_failure="ignore").weights for M, q in (first, second)]
    assert torch.equal(weights[0][:350], weights[1][:350])


@pytest.mark.parametrize("dim", [0, 1])
def test_an_ordered_sum_is_a_sum_and_the_same_at_every_place(dim):
    generator = torch.Generator().manual_seed(0)
    for size in (1, 3, 4, 5, 8, 15, 16, 64):
        x = torch.randn(*([2] if dim else []), size, 301, generator=generator)
        torch.testing.assert_close(ordered_sum(x, dim), x.sum(dim))
        for items in (slice(0, 1), slice(7, 40), slice(150, 301)):
            assert torch.equal(ordered_sum(x[..., items].contiguous(), dim), ordered_sum(x, dim)[..., items])
