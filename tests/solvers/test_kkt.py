"""The linear system of the gradient by itself, against numpy's dense solve and its pseudo-inverse."""

import numpy as np
import pytest
import torch

from solvers.kkt import solve_kkt

D = torch.float64


def system(L, B, seed, rank=None, dtype=D, symmetric=True):
    """Random M, free coordinates, tightness and right-hand sides."""
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(B, L, L if rank is None else rank, generator=generator, dtype=D)
    A = 0.0 if symmetric else torch.randn(B, L, L, generator=generator, dtype=D)
    M = Y @ Y.mT + (0.1 * torch.eye(L, dtype=D) if rank is None else 0.0)
    M = M if symmetric else M + A - A.mT
    free = torch.rand(B, L, generator=generator) < 0.7
    tight = torch.rand(B, generator=generator) < 0.5
    r, s = torch.randn(B, L, generator=generator, dtype=D), torch.randn(B, generator=generator, dtype=D)
    first_last = (M.movedim(0, -1), free.T, tight, r.T, s)
    return tuple(t.contiguous().to(dtype) if t.is_floating_point() else t.contiguous() for t in first_last)


def of_item(M, free, tight, r, s, b):
    return M[..., b].double().numpy(), free[:, b].numpy(), bool(tight[b]), r[:, b].double().numpy(), float(s[b])


def dense(M, free, tight, r, s):
    """By ``numpy.linalg.solve`` of the bordered matrix; ``x`` and ``ν``."""
    n, x = int(free.sum()), np.zeros(len(r))
    if n == 0:
        return x, 0.0
    K, right = M[np.ix_(free, free)], r[free]
    if tight:
        K = np.block([[K, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
        right = np.append(right, s)
    z = np.linalg.solve(K, right)
    x[free] = z[:n]
    return x, z[n] if tight else 0.0


def least(M, free, tight, r, s):
    """By the null space ``Z`` of the active sum: ``x⁰ + Z (ZᵀM_FF Z)⁺ Zᵀ(r − M x⁰)``."""
    n, x = int(free.sum()), np.zeros(len(r))
    if n == 0:
        return x, 0.0
    A, right = M[np.ix_(free, free)], r[free]
    Z, x0 = np.eye(n), np.zeros(n)
    if tight:
        Z, x0 = np.linalg.svd(np.ones((1, n)))[2][1:].T, np.full(n, s / n)
    y = x0 + Z @ np.linalg.pinv(Z.T @ A @ Z, rcond=1e-10) @ Z.T @ (right - A @ x0) if Z.size else x0
    x[free] = y
    return x, (right - A @ y).mean() if tight else 0.0


def stiffness(M):
    return M.abs().amax((0, 1))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "game"])
@pytest.mark.parametrize("L", [1, 2, 4, 8, 9, 14])
def test_regular_systems_are_solved_as_by_a_dense_solve(L, symmetric):
    data = system(L, 30, seed=L, symmetric=symmetric)
    M, free, tight, r, s = data
    found = solve_kkt(M, stiffness(M), free, tight, r, s)
    for b in range(30):
        x, price = dense(*of_item(*data, b))
        np.testing.assert_allclose(found.x[:, b], x, rtol=0, atol=1e-10)  # condition up to 1e4
        np.testing.assert_allclose(found.multiplier[b], price, rtol=0, atol=1e-10)
    some = free.any(0)
    assert found.residual[some].max() <= 1e-12
    assert found.x.dtype == found.multiplier.dtype == found.residual.dtype == D


@pytest.mark.parametrize(("L", "rank"), [(4, 3), (6, 5), (12, 11)])
def test_a_singular_m_of_one_lost_rank_is_regular_with_the_sum(L, rank):
    M, _, _, r, s = system(L, 20, seed=L, rank=rank)
    free, tight = torch.ones(L, 20, dtype=torch.bool), torch.ones(20, dtype=torch.bool)
    found = solve_kkt(M, stiffness(M), free, tight, r, s)
    assert found.residual.max() <= 1e-10
    for b in range(20):
        x, price = dense(*of_item(M, free, tight, r, s, b))
        np.testing.assert_allclose(found.x[:, b], x, rtol=1e-8, atol=1e-8)  # condition up to 1e7
        np.testing.assert_allclose(found.multiplier[b], price, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("L", "rank"), [(4, 1), (4, 2), (8, 3), (11, 4)])
def test_singular_systems_have_the_least_norm_and_say_what_is_left(L, rank):
    data = system(L, 30, seed=10 * L + rank, rank=rank)
    M, free, tight, r, s = data
    found = solve_kkt(M, stiffness(M), free, tight, r, s)
    singular = 0
    for b in range(30):
        item = of_item(*data, b)
        x, price = least(*item)
        np.testing.assert_allclose(found.x[:, b], x, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(found.multiplier[b], price, rtol=1e-7, atol=1e-7)
        if tight[b] and free[:, b].any():
            assert abs(float(found.x[:, b].sum() - s[b])) <= 1e-12 * np.abs(x).sum() + 1e-15  # roundings
        left = np.abs(item[3] - item[0] @ x - price)[item[1]].max(initial=0.0)
        assert (float(found.residual[b]) > 1e-6) == (left > 1e-6)
        singular += left > 1e-6
    assert singular >= 5, "the systems are consistent: the test proves nothing"


def test_an_inconsistent_system_has_the_residual_of_its_definition():
    M = torch.diag(torch.tensor([4.0, 0.0], dtype=D)).unsqueeze(-1)
    free, tight = torch.ones(2, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    r = torch.tensor([[8.0], [2.0]], dtype=D)
    found = solve_kkt(M, torch.full((1,), 4.0, dtype=D), free, tight, r, torch.zeros(1, dtype=D))
    assert found.x[:, 0].tolist() == pytest.approx([2.0, 0.0], abs=1e-14)
    assert found.multiplier.item() == 0.0
    assert found.residual.item() == pytest.approx(2.0 / 8.0, abs=1e-14)  # what is left, over the largest entry


def test_units_change_nothing_but_units():
    M, free, tight, r, s = system(6, 40, seed=3, rank=3)
    base = solve_kkt(M, stiffness(M), free, tight, r, s)
    for t, c in ((1e-30, 1.0), (1e30, 1.0), (1.0, 1e20), (1e12, 1e-12)):
        found = solve_kkt(t * M, stiffness(t * M), free, tight, t * c * r, c * s)
        torch.testing.assert_close(found.x / c, base.x, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.multiplier / (t * c), base.multiplier, rtol=1e-7, atol=1e-7)
        assert torch.equal(found.residual > 1e-6, base.residual > 1e-6)


def test_each_coordinate_may_have_its_own_unit_where_no_sum_is_tight():
    M, free, tight, r, s = system(5, 40, seed=4)
    tight = torch.zeros_like(tight)
    d = M.diagonal(dim1=0, dim2=1).T
    base = solve_kkt(M, d, free, tight, r, s)
    e = torch.tensor([1e-8, 1.0, 1e5, 1e8, 1e-3], dtype=D)
    scale = e[:, None, None] * e[None, :, None]
    found = solve_kkt(scale * M, e[:, None] ** 2 * d, free, tight, e[:, None] * r, s)
    torch.testing.assert_close(e[:, None] * found.x, base.x, rtol=0, atol=1e-11)
    assert not found.multiplier.any()


def test_the_singular_values_that_count_are_those_of_the_precision_of_m():
    """A singular value of half a rounding of float32 is noise there and data in float64."""
    near = 1 - 2.0**-24
    for dtype, expected in ((torch.float32, 0.0), (D, 2.0**24)):
        M = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype)
        M[0, 1] = M[1, 0] = near
        free, tight = torch.ones(2, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
        right = torch.tensor([[1.0], [-1.0]], dtype=dtype)
        zero = torch.zeros(1, dtype=dtype)
        found = solve_kkt(M.unsqueeze(-1), torch.ones(1, dtype=dtype), free, tight, right, zero)
        assert found.x[:, 0].tolist() == pytest.approx([expected, -expected], rel=1e-6, abs=1e-6)
        assert (found.residual.item() > 1e-6) == (expected == 0.0)


def test_what_is_not_free_and_a_sum_that_is_not_tight_are_ignored():
    M, free, tight, r, s = system(4, 30, seed=5)
    base = solve_kkt(M, stiffness(M), free, tight, r, s)
    odd = r.where(free, 1e9)
    strange = s.where(tight, 1e9)
    found = solve_kkt(M, stiffness(M), free, tight, odd, strange)
    for left, right in zip(found, base, strict=True):
        assert torch.equal(left, right)
    assert not base.x[~free].any()
    assert not base.multiplier[~tight].any()


def test_nobody_free_leaves_zero_without_a_residual_or_the_sum_unmet():
    M = torch.eye(3, dtype=D).unsqueeze(-1).expand(3, 3, 2)
    free = torch.zeros(3, 2, dtype=torch.bool)
    one, zero = torch.ones(3, 2, dtype=D), torch.zeros(2, dtype=D)
    found = solve_kkt(M, one[0], free, torch.tensor([True, False]), one, zero)
    assert not found.x.any()
    assert not found.multiplier.any()
    assert not found.residual.any()


def test_a_neighbour_that_is_singular_changes_no_bit():
    M, free, tight, r, s = system(5, 12, seed=6)
    alone = solve_kkt(M[..., :6], stiffness(M[..., :6]), free[:, :6], tight[:6], r[:, :6], s[:6])
    M = M.clone()
    M[..., 6:] = 1.0
    found = solve_kkt(M, stiffness(M), free, tight, r, s)
    assert torch.equal(found.x[:, :6], alone.x)
    assert torch.equal(found.multiplier[:6], alone.multiplier)
