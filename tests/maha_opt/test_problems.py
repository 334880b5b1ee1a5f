"""From scale outputs to problems: what holds for any data, shown on typical, scaled and degenerate data."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from maha_opt import convex_problem, gram, nash_problem
from solvers import Box, Budget, CappedSimplex, Free, NonNegative, Simplex, SumTo, solve
from solvers.certificates import exploitability, natural_residual

DTYPE = torch.float64


def scale_outputs(kind: str, *batch: int, L: int = 4, d: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(*batch, L, d, generator=generator, dtype=DTYPE)
    return {
        "random": Y,
        "huge": 1e6 * Y,
        "small": 1e-4 * Y,
        "duplicated": Y[..., :1, :].expand(*batch, L, d).clone(),
        "low rank": Y[..., :, :2] @ torch.randn(2, d, generator=generator, dtype=DTYPE),
        "zero": 0 * Y,
        "unequal": Y * torch.logspace(-3, 3, L, dtype=DTYPE).unsqueeze(-1),
    }[kind]


DATA = ("random", "huge", "small", "duplicated", "low rank", "zero", "unequal")


def antisymmetric(L: int, size: float) -> torch.Tensor:
    A = size * torch.randn(L, L, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    return A - A.T


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("L", [1, 2, 5])
def test_consensus_on_the_simplex_is_the_plain_mean_for_any_data(kind, L):
    problem = convex_problem(scale_outputs(kind, 20, L=L), "consensus", prices=0.3)
    assert_close(solve(problem, on_failure="raise").weights, torch.full((20, L), 1 / L, dtype=DTYPE))


def test_consensus_is_the_published_objective():
    Y = scale_outputs("random", d=6)
    problem = convex_problem(Y, "consensus", ridge=0.0)

    def published(w):
        return ((Y - w @ Y) ** 2).sum()

    def ours(w):
        return 0.5 * w @ problem.M @ w + problem.q @ w

    first, second = torch.rand(2, 4, dtype=DTYPE, generator=torch.Generator().manual_seed(2))
    assert_close(published(first) - published(second), 2 * 4 * 6 * (ours(first) - ours(second)))


def test_the_convex_problem_is_the_objective_that_its_docstring_states():
    Y, t = scale_outputs("random", d=6), scale_outputs("random", L=1, d=6, seed=3)[0]
    prior, prices = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DTYPE), torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=DTYPE)
    problem = convex_problem(Y, t, ridge=0.5, prior=prior, prices=prices, feasible=Free())
    power = gram(Y).trace() / 4

    def stated(w):
        fit = 0.5 * ((w @ Y - t) ** 2).sum() / 6
        return fit + power * (prices @ w.abs()) + 0.25 * power * ((w - prior) ** 2).sum()

    w = solve(problem, on_failure="raise").weights.detach()
    for direction in torch.eye(4, dtype=DTYPE):
        assert stated(w) <= stated(w + 1e-4 * direction)
        assert stated(w) <= stated(w - 1e-4 * direction)


def test_no_player_of_the_nash_problem_gains_by_deviating_from_the_costs_that_its_docstring_states():
    Y, a = scale_outputs("random", d=6), antisymmetric(4, 1.0)
    prices = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=DTYPE)
    w = solve(nash_problem(Y, a, ridge=0.5, prices=prices), on_failure="raise").weights
    power = gram(Y).trace() / 4

    def cost(player, own):
        v = w.clone()
        v[player] = own
        missing = Y[player] - ((1 + a[player]) * v) @ Y
        return 0.5 * (missing**2).sum() / 6 + power * prices[player] * own.abs() + 0.25 * power * own**2

    for player in range(4):
        alternatives = torch.stack([cost(player, own) for own in torch.linspace(0, 1, 101, dtype=DTYPE)])
        assert cost(player, w[player]) <= alternatives.min() + 1e-12
    assert exploitability(nash_problem(Y, a, ridge=0.5, prices=prices), w) < 1e-10


def test_uniform_prices_on_the_simplex_change_nothing_and_have_zero_gradient():
    Y, t = scale_outputs("random", 50), scale_outputs("random", 50, L=1, seed=3)[:, 0]
    price = torch.tensor(0.7, dtype=DTYPE, requires_grad=True)
    priced = solve(convex_problem(Y, t, prices=price.expand(4))).weights
    assert_close(priced, solve(convex_problem(Y, t)).weights, atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad((priced * torch.arange(4)).sum(), price)
    assert abs(gradient) < 1e-12


def test_prices_that_differ_move_weight_to_the_cheaper_scale():
    Y, t = scale_outputs("random", 50), scale_outputs("random", 50, L=1, seed=3)[:, 0]
    dear = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=DTYPE)
    change = solve(convex_problem(Y, t, prices=dear)).weights - solve(convex_problem(Y, t)).weights
    assert (change[:, 0] <= 1e-12).all()
    assert change[:, 0].min() < -0.1


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("size", [0.0, 0.1, 10.0, 1e4])
def test_every_antisymmetric_coupling_makes_a_strongly_monotone_game(kind, size):
    Y = scale_outputs(kind, 10)
    M = nash_problem(Y, antisymmetric(4, size)).M
    least = torch.linalg.eigvalsh(0.5 * (M + M.mT))[..., 0]
    power = gram(Y).diagonal(dim1=-2, dim2=-1).mean(-1)
    assert (least > 0).all()
    assert (least >= 1e-2 * power - 1e-13 * M.abs().amax((-1, -2))).all()


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(
    "feasible", [Simplex(), CappedSimplex(0.5), Box(0, 1), Budget(0.5), NonNegative(), SumTo(-1.0)]
)
def test_both_problems_are_solved_whatever_the_data(kind, feasible):
    Y, t = scale_outputs(kind, 40), scale_outputs("random", 40, L=1, seed=3)[:, 0]
    for problem in (convex_problem(Y, t, feasible=feasible), nash_problem(Y, antisymmetric(4, 1.0), feasible=feasible)):
        assert solve(problem, on_failure="raise").converged.all()
        assert solve(problem, on_failure="raise", tol=1e-10).weights.isfinite().all()


def test_with_the_identity_for_a_gram_matrix_convex_aggregation_is_sparsemax_of_the_scores():
    Y = 8**0.5 * torch.eye(4, 8, dtype=DTYPE)
    t = 3 * torch.randn(100, 8, dtype=DTYPE, generator=torch.Generator().manual_seed(4))
    w = solve(convex_problem(Y.expand(100, 4, 8), t, ridge=0.0)).weights
    scores = t @ Y.T / 8
    ordered = scores.sort(descending=True).values
    threshold = ((ordered.cumsum(-1) - 1) / torch.arange(1, 5)).amax(-1, keepdim=True)
    assert_close(w, (scores - threshold).relu())


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_the_data_leaves_the_weights(factor, dtype):
    Y, t = scale_outputs("random", 30).to(dtype), scale_outputs("random", 30, L=1, seed=3)[:, 0].to(dtype)
    prices = torch.tensor([0.0, 0.1, 0.2, 0.3])
    for feasible in (Simplex(), Box(-1.0, 1.0)):
        before = solve(convex_problem(Y, t, prices=prices, feasible=feasible)).weights
        after = solve(convex_problem(factor * Y, factor * t, prices=prices, feasible=feasible)).weights
        assert_close(after, before, atol=2e-5 if dtype == torch.float32 else 1e-10, rtol=0)
    a = antisymmetric(4, 0.5)
    assert_close(
        solve(nash_problem(factor * Y, a)).weights,
        solve(nash_problem(Y, a)).weights,
        atol=2e-5 if dtype == torch.float32 else 1e-10,
        rtol=0,
    )


def test_permuting_the_scales_permutes_the_weights():
    Y, t, order = (
        scale_outputs("random", 30),
        scale_outputs("random", 30, L=1, seed=3)[:, 0],
        torch.tensor([2, 0, 3, 1]),
    )
    prices, a = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=DTYPE), antisymmetric(4, 0.5)
    convex = solve(convex_problem(Y, t, prices=prices)).weights
    assert_close(solve(convex_problem(Y[:, order], t, prices=prices[order])).weights, convex[:, order])
    nash = solve(nash_problem(Y, a, prices=prices)).weights
    assert_close(solve(nash_problem(Y[:, order], a[order][:, order], prices=prices[order])).weights, nash[:, order])


def test_scales_that_do_not_exist_have_no_weight_and_no_influence_even_if_they_hold_nan():
    Y, t, a = scale_outputs("random", 3), scale_outputs("random", 3, L=1, seed=3)[:, 0], antisymmetric(4, 0.5)
    available = torch.tensor([[True, True, True, False], [True, False, True, False], [False, False, True, False]])
    Y = Y.masked_fill(~available.unsqueeze(-1), torch.nan).requires_grad_()
    for kind in ("target", "consensus", "nash"):
        make = {
            "target": lambda Y, keep, i, **rest: convex_problem(Y, t[i], **rest),
            "consensus": lambda Y, keep, i, **rest: convex_problem(Y, "consensus", **rest),
            "nash": lambda Y, keep, i, **rest: nash_problem(Y, a[keep][:, keep], **rest),
        }[kind]
        together = solve(make(Y, slice(None), slice(None), available=available), on_failure="raise").weights
        (gradient,) = torch.autograd.grad(together.square().sum(), Y)
        assert gradient.isfinite().all()
        for i in range(3):
            keep = available[i]
            alone = solve(make(Y[i][keep], keep, i), on_failure="raise").weights
            assert_close(together[i, keep], alone)
            assert (together[i, ~keep] == 0).all()
            assert (gradient[i, ~keep] == 0).all()


def test_a_cap_that_too_few_scales_cannot_meet_is_lifted_there():
    available = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    problem = convex_problem(
        scale_outputs("random", 3, L=3), "consensus", feasible=CappedSimplex(0.4), available=available
    )
    assert_close(
        solve(problem, on_failure="raise").weights,
        torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=DTYPE),
    )


def test_a_problem_for_all_tokens_is_the_mean_over_the_real_ones():
    Y, t = scale_outputs("random", 2, 5), scale_outputs("random", 2, 5, L=1, seed=3)[:, :, 0]
    tokens = torch.tensor([[True, True, True, True, True], [False, True, True, False, False]])
    holes = ~tokens.unsqueeze(-1)
    together = convex_problem(
        Y.masked_fill(holes.unsqueeze(-1), torch.nan), t.masked_fill(holes, torch.nan), ridge=0.0, tokens=tokens
    )
    each = convex_problem(Y, t, ridge=0.0)
    for b in range(2):
        assert_close(together.M[b], each.M[b, tokens[b]].mean(0))
        assert_close(together.q[b], each.q[b, tokens[b]].mean(0))


def test_a_sequence_without_real_tokens_is_a_dummy_and_no_fault():
    tokens = torch.tensor([[True, True], [False, False]])
    available = torch.ones(2, 2, 4, dtype=torch.bool)
    problem = nash_problem(scale_outputs("random", 2, 2), tokens=tokens, available=available, feasible=Simplex())
    assert solve(problem, on_failure="raise").weights.isfinite().all()


def test_zero_data_give_the_prior_on_the_simplex_and_finite_gradients_everywhere():
    Y = torch.zeros(3, 4, 8, requires_grad=True)
    t = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    w = solve(convex_problem(Y, t, prices=0.05), on_failure="raise").weights
    assert_close(w, torch.full((3, 4), 0.25))
    game = solve(nash_problem(Y, prices=0.05), on_failure="raise").weights
    assert (game == 0).all()
    fused = ((w + game).unsqueeze(-1) * Y).sum(-2)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(fused.sum(), (Y, t)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype):
    Y, t = scale_outputs("random", 5).to(dtype), scale_outputs("random", 5, L=1, seed=3)[:, 0].to(dtype)
    exact = gram(Y.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for data in (Y, Y.float()):
            assert_close(gram(data), exact.float(), atol=1e-6, rtol=1e-6)
            assert convex_problem(data, t).q.dtype == torch.float32
            assert_close(nash_problem(data, ridge=0.0).M, exact.float(), atol=1e-6, rtol=1e-6)


def test_gradients_reach_outputs_target_prior_prices_coupling_and_total():
    Y, t = scale_outputs("random", 2, L=3, d=4), scale_outputs("random", 2, L=1, d=4, seed=3)[:, 0]
    prices = torch.tensor([0.05, 0.1, 0.02], dtype=DTYPE)
    prior, total = torch.tensor([0.3, 0.3, 0.4], dtype=DTYPE), torch.tensor(0.9, dtype=DTYPE)

    def convex(Y, t, prices, prior, total):
        problem = convex_problem(Y, t, prices=prices, prior=prior, feasible=SumTo(total), ridge=0.5)
        return solve(problem, on_failure="raise").weights

    def nash(Y, A, prices, total):
        problem = nash_problem(Y, A - A.T, prices=prices, feasible=Budget(total), ridge=0.5)
        return solve(problem, on_failure="raise").weights

    data = [x.requires_grad_() for x in (Y, t, prices, prior, total)]
    assert gradcheck(convex, data)
    assert gradgradcheck(convex, data)
    A = antisymmetric(3, 0.5).requires_grad_()
    assert gradcheck(nash, (Y, A, prices, total))
    assert gradgradcheck(nash, (Y, A, prices, total))


def test_a_pooled_problem_has_the_right_gradient():
    Y, t = scale_outputs("random", 1, 3, L=2, d=4), scale_outputs("random", 1, 3, L=1, d=4, seed=3)[:, :, 0]
    tokens = torch.tensor([[True, False, True]])
    available = torch.tensor([[[True, True], [True, True], [True, False]]])

    def weights(Y, t):
        return solve(convex_problem(Y, t, tokens=tokens, available=available, feasible=Free())).weights

    assert gradcheck(weights, (Y.requires_grad_(), t.requires_grad_()))


def test_any_number_of_batch_dimensions_none_and_empty_ones():
    t = torch.ones(8, dtype=DTYPE)
    for batch in ((), (0,), (2, 1, 3)):
        Y = scale_outputs("random", *batch, d=8)
        problem = convex_problem(Y, t)
        assert solve(problem).weights.shape == (*batch, 4)
        assert natural_residual(problem, solve(problem).weights).shape == batch
        assert solve(nash_problem(Y.mT.contiguous().mT)).weights.shape == (*batch, 4)


@pytest.mark.parametrize(
    ("error", "named", "call"),
    [
        (TypeError, "Y", lambda Y: gram(Y.long())),
        (ValueError, "Y", lambda Y: gram(Y[0, 0])),
        (TypeError, "mask", lambda Y: gram(Y, Y[..., 0])),
        (ValueError, "mask", lambda Y: gram(Y, torch.ones(2, 3, dtype=torch.bool))),
        (ValueError, "target", lambda Y: convex_problem(Y, Y[:, 0, :3])),
        (ValueError, "target", lambda Y: convex_problem(Y, "mean")),
        (ValueError, "prior", lambda Y: convex_problem(Y, "consensus", prior=torch.ones(3))),
        (ValueError, "ridge", lambda Y: convex_problem(Y, "consensus", ridge=-1.0)),
        (ValueError, "ridge", lambda Y: nash_problem(Y, ridge=float("nan"))),
        (ValueError, "prices", lambda Y: nash_problem(Y, prices=-1.0)),
        (ValueError, "l1", lambda Y: solve(nash_problem(Y, prices=-torch.ones(4)))),
        (ValueError, "coupling", lambda Y: nash_problem(Y, torch.ones(3, 3))),
        (TypeError, "available", lambda Y: nash_problem(Y, available=Y[..., 0])),
        (ValueError, "available", lambda Y: nash_problem(Y, available=torch.ones(3, dtype=torch.bool))),
        (ValueError, "tokens", lambda Y: nash_problem(Y, tokens=torch.ones(5, dtype=torch.bool))),
        (ValueError, "tokens", lambda Y: nash_problem(Y[0], tokens=torch.ones(2, dtype=torch.bool))),
    ],
)
def test_wrong_input_is_refused_by_name(error, named, call):
    with pytest.raises(error, match=named):
        call(scale_outputs("random", 2))
