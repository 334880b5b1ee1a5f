"""Forward mode: the same derivative as backward, once, twice and three times, held against differences."""

import pytest
import torch
from oracle import directional
from problems import SETS, away_from_ties
from torch.autograd import forward_ad, gradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from solvers import AffineVI, ConvergenceError, Free, Simplex, solve

D = torch.float64
CLOSE = {"rtol": 0, "atol": 1e-9}  # the same linear systems, transposed; condition up to 1e4, gradients up to 1e2
every_set = pytest.mark.parametrize("name", SETS)
SOME = (
    "Simplex",
    "CappedSimplex masked",
    "Box signed",
    "Box half open",
    "Budget tensor",
    "signed sum",
    "signed budget",
)
most_sets_when_slow = pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in SETS]
)


def one_item(name, L=3, seed=0, kind="game"):
    """A case without a batch, so that jacobians are small, and its weights as a function of its tensors."""
    case = away_from_ties(name, L, 1, seed=seed, kind=kind).item(0)

    def weights(data):
        return solve(case.problem(**data), on_failure="raise").weights

    return case, weights


def random_direction(data, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in data.items()}


@every_set
def test_jvp_is_the_slope_along_a_direction(name):
    case, weights = one_item(name)
    direction = random_direction(case.data)
    value, slope = jvp(weights, (case.data,), (direction,))
    torch.testing.assert_close(value, weights(case.data), rtol=0, atol=0)
    right = directional(lambda **data: weights(data), case.data, direction, step=1e-5)
    # rounding 1e-16 · condition 1e3 / step 1e-5, and slopes of up to some hundred
    torch.testing.assert_close(slope, right, rtol=1e-7, atol=1e-7)


@most_sets_when_slow
def test_linearize_is_jvp_at_a_point_that_stays(name):
    case, weights = one_item(name)
    value, linear = linearize(weights, case.data)
    torch.testing.assert_close(value, weights(case.data), rtol=0, atol=0)
    for seed in range(2):
        direction = random_direction(case.data, seed)
        torch.testing.assert_close(linear(direction), jvp(weights, (case.data,), (direction,))[1], **CLOSE)


@every_set
def test_forward_and_backward_jacobians_are_equal(name):
    case, weights = one_item(name, seed=1)
    backward = jacrev(weights)(case.data)
    for of, forward in jacfwd(weights)(case.data).items():
        torch.testing.assert_close(forward, backward[of], **CLOSE)


@most_sets_when_slow
def test_dual_numbers_of_autograd_carry_the_slope(name):
    case = away_from_ties(name, 3, 4, seed=2, kind="game")
    direction = random_direction(case.data, seed=2)
    with forward_ad.dual_level():
        data = {k: forward_ad.make_dual(v, direction[k]) for k, v in case.data.items()}
        found = forward_ad.unpack_dual(solve(case.problem(**data), on_failure="raise").weights)
    right = directional(
        lambda **data: solve(case.problem(**data), on_failure="raise").weights, case.data, direction, step=1e-5
    )
    torch.testing.assert_close(found.primal, solve(case.problem()).weights, rtol=0, atol=0)
    torch.testing.assert_close(found.tangent, right, rtol=1e-7, atol=1e-7)


@most_sets_when_slow
def test_gradcheck_holds_in_forward_mode(name):
    case = away_from_ties(name, 3, 1, seed=3, kind="game").leaves()

    def weights(*tensors):
        return solve(case.problem(**dict(zip(case.data, tensors, strict=True))), on_failure="raise").weights

    assert gradcheck(weights, tuple(case.data.values()), check_forward_ad=True, check_backward_ad=False)


@most_sets_when_slow
def test_the_hessian_is_that_of_autograd(name):
    case, weights = one_item(name, seed=4)
    c = torch.tensor([1.0, -2.0, 0.5], dtype=D)
    names = [k for k in case.data if k in ("q", "M")]

    def loss(*tensors):
        return (weights(case.data | dict(zip(names, tensors, strict=True))) * c).square().sum()

    tensors = tuple(case.data[k] for k in names)
    everything = tuple(range(len(names)))
    right = torch.autograd.functional.hessian(loss, tensors)
    nestings = [hessian(loss, everything)]
    nestings += [a(b(loss, everything), everything) for a in (jacfwd, jacrev) for b in (jacfwd, jacrev)]
    for how in nestings:
        for found_row, right_row in zip(how(*tensors), right, strict=True):
            for found, expected in zip(found_row, right_row, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-8)  # squares of gradients


def third_by_autograd(loss, x, direction):
    """The third derivative along a direction by three backward passes in eager mode."""
    x = x.clone().requires_grad_()
    value = loss(x)
    for _ in range(3):
        (g,) = torch.autograd.grad(value, x, create_graph=True)
        value = (g * direction).sum()
    return value.detach()


@pytest.mark.parametrize("name", ["Simplex", "Box signed", "signed budget", "Free"])
@pytest.mark.parametrize("of", ["M", "l1"])
def test_third_derivatives_by_any_nesting_are_those_of_autograd_and_of_differences(name, of):
    case, weights = one_item(name, seed=5)
    c, x = torch.tensor([1.0, -2.0, 0.5], dtype=D), case.data[of]
    direction = random_direction({of: x}, seed=5)[of]

    def loss(x):
        return (weights(case.data | {of: x}) * c).sum().exp()

    def along(function):
        return lambda x: jvp(function, (x,), (direction,))[1]

    def back(function):
        return lambda x: (grad(function)(x) * direction).sum()

    right = third_by_autograd(loss, x, direction)
    h = 1e-4  # of the second derivative, which is exact to 1e-12: error h⁴ and 1e-12 / h
    second = along(along(loss))
    step = (second(x - 2 * h * direction) - 8 * second(x - h * direction) + 8 * second(x + h * direction)
            - second(x + 2 * h * direction)) / (12 * h)  # fmt: skip
    scale = max(1.0, abs(float(right)))
    assert abs(float(right - step)) <= 1e-5 * scale
    for nested in (
        along(along(along(loss))),
        back(back(back(loss))),
        along(back(along(loss))),
        back(along(back(loss))),
    ):
        assert abs(float(nested(x) - right)) <= 1e-8 * scale


def test_vmap_of_forward_mode_is_forward_mode_of_the_batch():
    case = away_from_ties("signed budget", 3, 5, seed=6, kind="game")
    direction = random_direction(case.data, seed=6)

    def weights(data):
        return solve(case.problem(**data), on_failure="ignore").weights

    _, together = jvp(weights, (case.data,), (direction,))
    each = vmap(lambda data, t: jvp(weights, (data,), (t,))[1])(case.data, direction)
    torch.testing.assert_close(each, together, **CLOSE)
    rows = vmap(jacfwd(lambda q, M: solve(AffineVI(M, q, Simplex()), on_failure="ignore").weights))
    case = away_from_ties("Simplex", 3, 5, seed=6)
    found = rows(case.data["q"], case.data["M"])
    for b in range(5):
        right = jacrev(lambda q, b=b: solve(AffineVI(case.data["M"][b], q, Simplex())).weights)(case.data["q"][b])
        torch.testing.assert_close(found[b], right, **CLOSE)


def test_forward_mode_is_the_transpose_of_backward_mode_also_where_the_system_is_singular():
    Y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=D)
    M, q = Y @ Y.mT, torch.tensor([-0.2, -0.2, -0.1], dtype=D)

    def weights(q):
        return solve(AffineVI(M, q, Simplex()), on_failure="ignore").weights

    forward, backward = jacfwd(weights)(q), jacrev(weights)(q)
    assert forward.isfinite().all()
    torch.testing.assert_close(forward, backward, **CLOSE)
    eager = torch.autograd.functional.jacobian(weights, q)
    torch.testing.assert_close(backward, eager, **CLOSE)


def test_a_slope_that_has_no_answer_is_said_in_forward_mode_too():
    M, q = torch.ones(2, 2, dtype=D), torch.tensor([-1.0, -1.0], dtype=D)
    t = torch.tensor([1.0, -1.0], dtype=D)

    def slope(on_failure):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(q, t)
            w = solve(AffineVI(M, x, Free()), on_failure=on_failure).weights
            return forward_ad.unpack_dual(w).tangent

    with pytest.warns(UserWarning, match="not differentiable"):
        assert slope("warn").isfinite().all()
    with pytest.raises(ConvergenceError, match="not differentiable"):
        slope("raise")


def test_unsolved_and_faulty_items_have_no_slope():
    q = torch.tensor([[-1.0, -2.0], [torch.nan, 0.0], [-1.0, -2.0]], dtype=D)
    M = torch.eye(2, dtype=D).expand(3, 2, 2).clone()
    M[2] = -M[2]

    def weights(q):
        return solve(AffineVI(M, q, Free()), on_failure="ignore").weights

    _, slope = jvp(weights, (q,), (torch.ones_like(q),))
    torch.testing.assert_close(slope[0], torch.tensor([-1.0, -1.0], dtype=D), rtol=0, atol=1e-14)
    assert not slope[2].any()
    assert not slope[1].nan_to_num(0.0).any()


def test_forward_over_unrolled_and_one_step_agrees_with_backward():
    case = away_from_ties("Box signed", 3, 1, seed=7, margin=0.02).item(0)
    for solver, gradient in (("best_response", "one_step"), ("projected_gradient", "one_step"),
                             ("best_response", "unrolled")):  # fmt: skip

        def weights(q, solver=solver, gradient=gradient):
            options = {"unroll": 20} if gradient == "unrolled" else {}
            problem = AffineVI(case.data["M"], q, case.problem().feasible, l1=case.data["l1"], symmetric=True)
            return solve(problem, solver, gradient, on_failure="ignore", **options).weights

        forward, backward = jacfwd(weights)(case.data["q"]), jacrev(weights)(case.data["q"])
        torch.testing.assert_close(forward, backward, **CLOSE)


def test_a_vjp_of_a_jvp_and_a_jvp_of_a_vjp_are_the_same_numbers():
    case, weights = one_item("signed sum", seed=8)
    t, c = random_direction(case.data, seed=8)["q"], torch.tensor([1.0, -2.0, 0.5], dtype=D)

    def of_m(M):
        return jvp(lambda q: weights(case.data | {"q": q, "M": M}), (case.data["q"],), (t,))[1]

    (first,) = vjp(of_m, case.data["M"])[1](c)
    second = jvp(lambda q: grad(lambda M: (weights(case.data | {"q": q, "M": M}) * c).sum())(case.data["M"]),
                 (case.data["q"],), (t,))[1]  # fmt: skip
    torch.testing.assert_close(first, second, **CLOSE)
