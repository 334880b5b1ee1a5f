"""torch.func and torch.compile go through a solve, or the error says what to do instead."""

import pytest
import torch
from problems import SETS, away_from_ties, random_case
from torch.func import functional_call, grad, jacrev, vmap

from solvers import AffineVI, Simplex, solve

OURS = ("pivot", "best_response", "projected_gradient", "mirror_descent")
CLOSE = {"rtol": 0, "atol": 1e-10}  # the same arithmetic in another order, condition numbers up to 1e4
every_set = pytest.mark.parametrize("name", SETS)


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def weights_of(case, **options):
    def weights(**data):
        return solve(case.problem(**data), on_failure="ignore", **options).weights

    return weights


@every_set
def test_vmap_equals_the_batch(name):
    case = random_case(name, 3, (4, 5), seed=0)
    if case.mask is not None:  # one mask for all: the set itself is not mapped over
        case = type(case)(name, case.data, torch.tensor([True, False, True]))
        case.data.update({"cap": torch.full((4, 5, 3), 0.8, dtype=torch.float64)} if "cap" in case.data else {})
    expected = weights_of(case)(**case.data)
    mapped = vmap(lambda data: weights_of(case)(**data))
    torch.testing.assert_close(mapped(case.data), expected, **CLOSE)
    torch.testing.assert_close(vmap(mapped)(case.data), expected, **CLOSE)


@every_set
def test_gradients_by_torch_func_are_those_of_autograd(name):
    case = away_from_ties(name, 3, 4, seed=1)
    cotangent = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    if case.mask is not None:
        case = type(case)(name, case.data, case.mask[0])

    def loss(data):
        return (weights_of(case)(**data) * cotangent).sum()

    leaves = {k: v.clone().requires_grad_() for k, v in case.data.items()}
    loss(leaves).backward()
    for functional in (grad(loss)(case.data), vmap(grad(loss))(case.data)):
        for of, found in functional.items():
            expected = leaves[of].grad
            torch.testing.assert_close(found, torch.zeros_like(found) if expected is None else expected, **CLOSE)


def test_jacobian_and_hessian_by_torch_func_are_right():
    case = away_from_ties("signed sum", 3, 1, seed=2).item(0)
    weights = weights_of(case)

    def of_q(q):
        return weights(q=q)

    jacobian = jacrev(of_q)(case.data["q"])
    expected = torch.autograd.functional.jacobian(of_q, case.data["q"])
    torch.testing.assert_close(jacobian, expected, **CLOSE)
    hessian = jacrev(grad(lambda M: weights(M=M)[0]))(case.data["M"])
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda M: weights(M=M)[0], case.data["M"]),
                               **CLOSE)  # fmt: skip


ONE_STEP, UNROLLED = {"gradient": "one_step"}, {"gradient": "unrolled", "unroll": 5}


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        *((solver, {}) for solver in OURS),
        ("projected_gradient", ONE_STEP),
        ("mirror_descent", UNROLLED),
        *(pytest.param(solver, ONE_STEP, marks=pytest.mark.slow) for solver in ("best_response", "mirror_descent")),
        *(pytest.param(solver, UNROLLED, marks=pytest.mark.slow) for solver in ("best_response", "projected_gradient")),
    ],
    ids=str,
)
def test_vmap_and_compile_go_through_every_solver_of_ours(solver, options):
    case = random_case("Simplex", 3, 4, seed=3)
    case = type(case)(case.name, case.data, options={"symmetric": True})
    weights = weights_of(case, solver=solver, **options)

    def loss(data):
        return weights(**data).square().sum()

    expected = grad(loss)(case.data)
    for found in (vmap(grad(loss))(case.data), compiled(grad(loss))(case.data)):
        for of in expected:
            torch.testing.assert_close(found[of], expected[of], rtol=0, atol=1e-7)  # unconverged iterates differ more


COMPILED = ("Simplex masked", "Box half open", "signed budget")


@pytest.mark.parametrize("name", [n if n in COMPILED else pytest.param(n, marks=pytest.mark.slow) for n in SETS])
def test_compile_goes_through_every_set_forward_and_backward(name):
    case = random_case(name, 3, 4, seed=4)
    eager, fast = case.leaves(), case.leaves()
    weights_of(eager)(**eager.data).square().sum().backward()
    w = compiled(lambda data: weights_of(fast)(**data))(fast.data)
    torch.testing.assert_close(w.detach(), weights_of(case)(**case.data), **CLOSE)
    w.square().sum().backward()
    for of, tensor in eager.data.items():
        expected, found = (torch.zeros_like(tensor) if g is None else g for g in (tensor.grad, fast.data[of].grad))
        torch.testing.assert_close(found, expected, **CLOSE)


def test_a_compiled_solve_still_certifies_raises_and_isolates_faulty_items():
    case = random_case("Simplex", 3, 4, seed=5)
    q = case.data["q"].clone()
    q[2, 0] = torch.nan

    @compiled
    def run(M, q):
        solution = solve(AffineVI(M, q, Simplex()), on_failure="ignore")
        return solution.weights, solution.converged, solution.residual

    w, converged, residual = run(case.data["M"], q)
    eager = solve(AffineVI(case.data["M"], q, Simplex()), on_failure="ignore")
    torch.testing.assert_close(w, eager.weights, equal_nan=True, **CLOSE)
    assert torch.equal(converged, eager.converged)
    assert residual[2].isnan()
    strict = compiled(lambda M, q: solve(AffineVI(M, q, Simplex()), on_failure="raise").weights)
    with pytest.raises(ValueError, match=r"q holds NaN or Inf at batch index 2 \(1 of 4\)"):
        strict(case.data["M"], q)


def test_the_default_set_is_the_simplex_also_under_compile():
    case = random_case("Simplex", 3, 4, seed=9)
    found = compiled(lambda M, q: solve(AffineVI(M, q)).weights)(case.data["M"], case.data["q"])
    torch.testing.assert_close(found, weights_of(case)(l1=0.0), **CLOSE)


def test_one_compilation_serves_every_batch_size():
    torch._dynamo.reset()

    def weights(M, q):
        return solve(AffineVI(M, q, Simplex())).weights

    run = torch.compile(weights, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 20):
        case = random_case("Simplex", 3, batch, seed=batch)
        torch.testing.assert_close(run(case.data["M"], case.data["q"]), weights_of(case)(l1=0.0), **CLOSE)


@pytest.mark.parametrize("transform", ["compile", "vmap"])
@pytest.mark.parametrize(
    ("solver", "options"), [("cvxpylayers", {}), ("projected_gradient", {"gradient": "unrolled"})], ids=str
)
def test_what_cannot_be_traced_says_what_to_do(transform, solver, options):
    case = random_case("Simplex", 3, 4, seed=6)

    def weights(M, q):
        return solve(AffineVI(M, q, Simplex(), symmetric=True), solver, **options).weights

    with pytest.raises(Exception, match=r"cannot go through.*gradient='implicit'.*unroll=K"):  # dynamo wraps errors
        (compiled(weights) if transform == "compile" else vmap(weights))(case.data["M"], case.data["q"])


@pytest.mark.parametrize("transform", ["compile", "vmap"])
def test_unrolling_without_known_symmetry_works_or_says_what_to_do(transform):
    case = random_case("Simplex", 3, 4, seed=7, kind="game")
    M, q = case.data["M"], case.data["q"]

    def weights(M, q):
        options = {"gradient": "unrolled", "unroll": 4, "on_failure": "ignore"}
        return solve(AffineVI(M, q, Simplex()), "projected_gradient", **options).weights

    found = (compiled(weights) if transform == "compile" else vmap(weights))(M, q)
    torch.testing.assert_close(found, weights(M, q), **CLOSE)


def test_a_module_with_a_solve_inside_works_under_functional_call():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.score = torch.nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x):
            return solve(AffineVI(torch.eye(3, dtype=x.dtype), -self.score(x), Simplex())).weights

    layer = Layer()
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    parameters = dict(layer.named_parameters())
    per_sample = vmap(grad(lambda p, x: functional_call(layer, p, (x,))[0]), in_dims=(None, 0))(parameters, x)
    layer(x)[:, 0].sum().backward()
    for of, found in per_sample.items():
        torch.testing.assert_close(found.sum(0), parameters[of].grad, **CLOSE)
