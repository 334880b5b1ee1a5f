"""Gradients where M is singular on the free coordinates: right where the KKT matrix is regular, else it is said."""

import warnings

import numpy as np
import pytest
import torch
from oracle import tie_margin

from solvers import (
    AffineVI,
    Box,
    Budget,
    CappedSimplex,
    ConvergenceError,
    FeasibleSet,
    Free,
    NonNegative,
    Simplex,
    solve,
)

D = torch.float64


def gram_problems(L, channels, count, seed, size=1.0):
    """``M = YYᵀ`` of rank ``channels`` and ``q = −M w − ν1`` + a random rest, so that often several are free."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(count, *shape, generator=generator, dtype=D)

    Y = normal(L, channels)
    inside = torch.rand(count, L, generator=generator, dtype=D) + 0.1
    inside = size * inside / inside.sum(-1, keepdim=True)
    M = Y @ Y.mT
    q = 0.7 - (M @ inside.unsqueeze(-1)).squeeze(-1) + 0.1 * normal(L)
    return M, q, normal(L)


SETS = {
    "simplex": lambda count, L: Simplex(),
    "capped simplex": lambda count, L: CappedSimplex(torch.full((count, L), 0.6, dtype=D)),
    "budget": lambda count, L: Budget(torch.full((count,), 0.8, dtype=D)),
}


def clear_items(M, q, build, margin=1e-4):
    """Those whose active set is the same a step of differences away, and whose KKT matrix has condition up to 1e5."""
    problem = AffineVI(M, q, build(len(q), q.shape[-1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = solve(problem)
    w = solution.weights
    clear = solution.converged & (torch.from_numpy(tie_margin(problem, w)) > margin)
    upper = problem.feasible.upper
    free = (w > 1e-9) & (w < torch.as_tensor(upper) - 1e-9)
    tight = torch.as_tensor(problem.feasible.total - w.sum(-1) < 1e-9)
    for b in clear.nonzero()[:, 0].tolist():
        K = kkt_matrix(M[b].numpy(), free[b].numpy(), bool(tight[b]))
        clear[b] = len(K) == 0 or bool(np.linalg.cond(K) < 1e5)
    return clear.nonzero()[:, 0]


def kkt_matrix(M, free, tight):
    n = int(free.sum())
    K = M[np.ix_(free, free)]
    if not tight:
        return K
    return np.block([[K, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])


def differences(function, x, step=1e-6):
    """Central differences of ``function``, (B, L) → (B,), in every coordinate of every item."""
    columns = []
    for i in range(x.shape[-1]):
        e = torch.zeros_like(x)
        e[:, i] = step
        columns.append((function(x + e) - function(x - e)) / (2 * step))
    return torch.stack(columns, -1)


def adjoint(M, w, problem, b, c):
    """``∂(c·w)/∂q`` of one item by a dense solve of the KKT matrix."""
    upper = torch.as_tensor(problem.feasible.upper, dtype=D).expand(w.shape)
    free = ((w > 1e-9) & (w < upper - 1e-9))[b].numpy()
    tight = bool(torch.as_tensor(problem.feasible.total - w.sum(-1))[b] < 1e-9)
    g = np.zeros(len(free))
    if free.any():
        right = np.append(c[b].numpy()[free], [0.0] * tight)
        g[free] = -np.linalg.solve(kkt_matrix(M[b].numpy(), free, tight).T, right)[: free.sum()]
    return g


def wrong_gradients(name, L, channels, count, seed):
    """The relative errors of gradients of items clear of ties: to the dense adjoint, and to differences."""
    M, q, c = gram_problems(L, channels, count, seed)
    build = SETS[name]
    items = clear_items(M, q, build)
    M, q, c = M[items], q[items], c[items]
    x = q.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the adjoint is regular: nothing to warn about
        problem = AffineVI(M, x, build(len(q), L))
        weights = solve(problem).weights
        (found,) = torch.autograd.grad((weights * c).sum(), x)
    assert found.isfinite().all()
    dense = np.stack([adjoint(M, weights.detach(), problem, b, c) for b in range(len(q))])
    slope = differences(lambda p: (solve(AffineVI(M, p, build(len(q), L)), on_failure="raise").weights * c).sum(-1), q)
    size = slope.abs().amax(-1).clamp_min(1e-3)
    return [(found - right).abs().amax(-1) / size for right in (torch.from_numpy(dense), slope)]


def hold_right(name, L, channels, count, seed, least):
    to_dense, to_differences = wrong_gradients(name, L, channels, count, seed)
    assert len(to_dense) > least, "too few are clear of ties: choose another seed"
    assert to_dense.max() <= 1e-9  # condition up to 1e5
    assert to_differences.max() <= 1e-4  # rounding 1e-16 · condition 1e5 / step 1e-6, times 10
    assert to_differences.median() <= 1e-6


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("L", "channels"), [(4, 3), (4, 2), (10, 4)])
def test_fewer_channels_than_scales_give_the_right_gradient(name, L, channels):
    hold_right(name, L, channels, 60 if L < 10 else 25, seed=1, least=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("seed", range(100, 104))
def test_ten_thousand_rank_deficient_problems_have_the_right_gradient(name, seed):
    for L, channels in ((3, 2), (4, 2), (4, 3), (6, 3), (8, 5), (12, 4)):
        hold_right(name, L, channels, 300, seed, least=30)


def test_the_published_case_of_four_scales_and_three_channels_is_right():
    torch.manual_seed(1)
    Y = torch.randn(4, 3, dtype=D)
    M = Y @ Y.mT
    q = 0.7 - M @ torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=D)
    v = torch.arange(1.0, 5, dtype=D)
    x = q.clone().requires_grad_()
    (solve(AffineVI(M, x)).weights @ v).backward()
    right = differences(lambda p: solve(AffineVI(M, p)).weights @ v, q.unsqueeze(0))[0]
    torch.testing.assert_close(x.grad, right, rtol=0, atol=1e-8)  # rounding 1e-16 · condition 36 / step 1e-6


def test_a_linear_program_follows_its_bounds_total_and_nothing_else():
    q = torch.tensor([-3.0, -2.0, -1.0], dtype=D, requires_grad=True)
    cap = torch.tensor([0.4, 0.5, 0.6], dtype=D, requires_grad=True)
    total = torch.tensor(0.7, dtype=D, requires_grad=True)
    c = torch.tensor([1.0, 10.0, 100.0], dtype=D)
    for equality in (True, False):
        problem = AffineVI(torch.zeros(3, 3, dtype=D), q, FeasibleSet(0.0, cap, total, equality))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            w = solve(problem).weights
            of_q, of_cap, of_total = torch.autograd.grad((w * c).sum(), (q, cap, total))
        torch.testing.assert_close(w.detach(), torch.tensor([0.4, 0.3, 0.0], dtype=D), rtol=0, atol=1e-9)
        assert not of_q.any()  # the vertex stays
        torch.testing.assert_close(of_cap, torch.tensor([-9.0, 0.0, 0.0], dtype=D), rtol=0, atol=1e-12)
        torch.testing.assert_close(of_total, torch.tensor(10.0, dtype=D), rtol=0, atol=1e-12)


def test_rock_paper_scissors_is_differentiable():
    M = torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]], dtype=D)
    q = torch.zeros(3, dtype=D, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w = solve(AffineVI(M, q)).weights
        rows = torch.stack([torch.autograd.grad(w[i], q, retain_graph=True)[0] for i in range(3)])
    torch.testing.assert_close(w.detach(), torch.full((3,), 1 / 3, dtype=D), rtol=0, atol=1e-9)
    K = np.block([[M.numpy(), np.ones((3, 1))], [np.ones((1, 3)), np.zeros((1, 1))]])
    np.testing.assert_allclose(rows.numpy(), -np.linalg.inv(K)[:3, :3], rtol=0, atol=1e-12)


def duplicated(count=1, unit=1.0):
    """Two scales that are the same, so that only their joint weight is decided."""
    Y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=D)
    M = unit * (Y @ Y.mT).expand(count, 3, 3).clone()
    q = unit * torch.tensor([[-0.2, -0.2, -0.1]], dtype=D).expand(count, 3).clone()
    return M, q


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e9])
def test_of_equal_scales_the_active_equations_hold_and_the_rest_has_the_least_norm(unit):
    M, q = duplicated(unit=unit)
    x, total = q.clone().requires_grad_(), torch.ones(1, dtype=D, requires_grad=True)
    w = solve(AffineVI(M, x, FeasibleSet(0.0, total=total))).weights
    g = torch.tensor([[1.0, -1.0, 2.0]], dtype=D)  # asks which of the two, so no gradient answers
    with pytest.warns(UserWarning, match=r"not differentiable.*least norm.* at batch index 0 \(1 of 1\)"):
        of_q, of_total = torch.autograd.grad((w * g).sum(), (x, total))
    y = -of_q[0] * unit
    assert y.sum().abs() <= 1e-14  # 1ᵀy = 0 holds exactly
    Z = np.linalg.svd(np.ones((1, 3)))[2][1:].T
    A = M[0].numpy() / unit
    expected = Z @ np.linalg.pinv(Z.T @ A @ Z, rcond=1e-10) @ Z.T @ g[0].numpy()
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(of_total.item(), (g[0].numpy() - A @ expected).mean(), rtol=0, atol=1e-12)


def test_the_backward_pass_counts_names_raises_or_is_silent():
    M, q = duplicated(count=6)
    M[:4] = torch.eye(3, dtype=D)  # the last two are singular
    M, q = M.reshape(2, 3, 3, 3), q.reshape(2, 3, 3)
    g = torch.tensor([1.0, -1.0, 2.0], dtype=D)

    def gradient(on_failure, cotangent=g):
        x = q.clone().requires_grad_()
        w = solve(AffineVI(M, x, Free()), on_failure=on_failure).weights
        return torch.autograd.grad((w * cotangent).sum(), x)[0]

    with pytest.warns(UserWarning, match=r"not differentiable.*at batch index \(1, 1\) \(2 of 6\)") as caught:
        warned = gradient("warn")
    assert len([w for w in caught if "not differentiable" in str(w.message)]) == 1
    with pytest.raises(ConvergenceError, match=r"not differentiable.*\(1, 1\) \(2 of 6\)"):
        gradient("raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(gradient("ignore"), warned)
        same = gradient("warn", torch.tensor([1.0, 1.0, 2.0], dtype=D))  # only the joint weight: consistent
        gradient("raise", torch.tensor([1.0, 1.0, 2.0], dtype=D))
    torch.testing.assert_close(same[1, 1], torch.tensor([-0.5, -0.5, -2.0], dtype=D), rtol=0, atol=1e-12)
    assert warned.isfinite().all()


@pytest.mark.parametrize("name", ["free", "box"])
def test_a_direction_that_nothing_decides_gets_no_gradient(name):
    feasible = {"free": Free(), "box": Box(-10.0, 10.0)}[name]
    M = torch.diag(torch.tensor([2.0, 0.0, 1.0], dtype=D))
    q = torch.tensor([1.0, 0.0, 3.0], dtype=D, requires_grad=True)
    w = solve(AffineVI(M, q, feasible), on_failure="ignore").weights
    if w[1].abs() < 10:
        (of_q,) = torch.autograd.grad(w.sum(), q)
        torch.testing.assert_close(of_q, torch.tensor([-0.5, 0.0, -1.0], dtype=D), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gradient", ["implicit", "one_step"])
@pytest.mark.parametrize("solver", ["pivot", "projected_gradient"])
def test_unsolved_items_have_a_zero_gradient_and_leave_their_neighbours_theirs(solver, gradient):
    if (solver, gradient) == ("pivot", "one_step"):
        return
    M = torch.eye(2, dtype=D).expand(4, 2, 2).clone()
    M[1] = 0.0  # unbounded
    M[2] = -torch.eye(2, dtype=D)  # not monotone
    q = torch.tensor([[-1.0, -2.0]], dtype=D).expand(4, 2).clone()
    q[3] = torch.nan
    x = q.clone().requires_grad_()
    options = {} if solver == "pivot" else {"max_iter": 200, "gradient": gradient}
    solution = solve(AffineVI(M.requires_grad_(), x, NonNegative()), solver, on_failure="ignore", **options)
    assert solution.converged.tolist() == [True, False, False, False]
    of_M, of_q = torch.autograd.grad(solution.weights.sum(), (M, x))
    assert not of_M[1:].any()
    assert not of_q[1:].any()
    torch.testing.assert_close(of_q[0], torch.full((2,), -1.0, dtype=D), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_gradients_of_random_singular_problems_are_finite_in_every_precision(dtype):
    for L, channels, seed in ((4, 1, 0), (9, 2, 1), (2, 1, 2)):
        M, q, c = (tensor.to(dtype) for tensor in gram_problems(L, channels, 100, seed))
        for feasible in (Simplex(), Budget(0.8), NonNegative(), Box(), CappedSimplex(0.7)):
            x = q.clone().requires_grad_()
            w = solve(AffineVI(M, x, feasible), on_failure="ignore").weights
            (of_q,) = torch.autograd.grad((w * c).sum(), x)
            assert of_q.isfinite().all()


@pytest.mark.parametrize("gradient", ["implicit", "one_step", "unrolled"])
def test_a_matrix_of_zeros_has_a_finite_gradient_in_every_mode(gradient):
    for feasible in (Box(), Simplex()):
        M = torch.zeros(2, 2, dtype=D, requires_grad=True)
        q = torch.tensor([-1.0, 1.0], dtype=D, requires_grad=True)
        for solver in ("projected_gradient", "best_response"):
            w = solve(AffineVI(M, q, feasible), solver, gradient, on_failure="ignore").weights
            for found in torch.autograd.grad(w[0], (M, q)):
                assert found.isfinite().all(), solver
