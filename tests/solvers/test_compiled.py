"""torch.compile and torch.func in one another, and the operators that they go through."""

import pytest
import torch
from problems import SETS, away_from_ties, random_case
from torch.func import functional_call, grad, jacrev, vmap

from solvers import AffineVI, FeasibleSet, Simplex, opaque, solve
from solvers.best_response import BestResponse
from solvers.pivot import Pivot

CLOSE = {"rtol": 0, "atol": 1e-10}  # the same arithmetic in another order, condition numbers up to 1e4
D = torch.float64
NAMES = ("Simplex", "Box half open", "signed budget", "CappedSimplex tensor")
SLOW = pytest.mark.slow
every_backend = pytest.mark.parametrize("backend", ["aot_eager", pytest.param("eager", marks=SLOW)])
IN_SHORT = [("signed budget", "eager"), ("signed budget", "aot_eager"), ("Simplex", "aot_eager")]
IN_FULL = [(name, backend) for name in NAMES for backend in ("eager", "aot_eager")]
IN_FULL += [("signed budget", "inductor")]
sets_and_backends = pytest.mark.parametrize(
    ("name", "backend"), [*IN_SHORT, *(pytest.param(*c, marks=SLOW) for c in IN_FULL if c not in IN_SHORT)]
)


def compiled(function, backend):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


def case_and_loss(name, seed):
    case = away_from_ties(name, 3, 4, seed=seed)
    c = torch.tensor([1.0, -2.0, 0.5], dtype=D)

    def loss(data):
        return (solve(case.problem(**data), on_failure="ignore").weights * c).sum(-1)

    return case, loss


def leaves(case):
    return {k: v.clone().requires_grad_() for k, v in case.data.items()}


def gradients(function, case):
    data = leaves(case)
    found = torch.autograd.grad(function(data).sum(), list(data.values()), allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(data.items(), found, strict=True)}


def hold(found, expected):
    for of, right in expected.items():
        torch.testing.assert_close(found[of], right, **CLOSE, msg=of)


@sets_and_backends
def test_compiled_vmap_has_the_gradients_of_eager(name, backend):
    case, loss = case_and_loss(name, seed=1)
    expected = gradients(loss, case)
    hold(gradients(vmap(loss), case), expected)
    hold(gradients(compiled(vmap(loss), backend), case), expected)


@sets_and_backends
def test_compiled_gradients_by_transform_are_those_of_eager(name, backend):
    case, loss = case_and_loss(name, seed=2)
    expected = gradients(loss, case)
    hold(compiled(vmap(grad(loss)), backend)(case.data), expected)
    hold(compiled(grad(lambda data: loss(data).sum()), backend)(case.data), expected)


@every_backend
def test_vmap_of_a_compiled_function_has_the_gradients_of_eager(backend):
    case, loss = case_and_loss("signed budget", seed=3)
    mapped = vmap(torch.compile(loss, fullgraph=True, backend=backend))
    if backend != "eager":  # torch itself wants this one inside of a compiled function
        mapped = compiled(mapped, backend)
    hold(gradients(mapped, case), gradients(loss, case))


@every_backend
def test_compiled_jacobians_of_the_batch_are_those_of_eager(backend):
    case, _ = case_and_loss("Simplex", seed=4)

    def weights(q, M):
        return solve(AffineVI(M, q, Simplex()), on_failure="ignore").weights

    jacobian = vmap(jacrev(weights))
    expected = jacobian(case.data["q"], case.data["M"])
    torch.testing.assert_close(compiled(jacobian, backend)(case.data["q"], case.data["M"]), expected, **CLOSE)


def strided(x, how):
    """The same numbers in other strides."""
    if how == "transposed" and x.ndim > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "every other":
        return torch.stack((x, x + 1), -1)[..., 0]
    return x


@pytest.mark.parametrize("how", ["transposed", "every other"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=SLOW)])
def test_any_strides_give_the_same_numbers(how, backend):
    case, loss = case_and_loss("signed budget", seed=5)
    expected = gradients(loss, case)
    case.data.update({k: strided(v, how) for k, v in case.data.items()})
    assert not case.data["q"].is_contiguous()
    hold(grad(lambda data: loss(data).sum())(case.data), expected)
    hold(compiled(vmap(grad(loss)), backend)(case.data), expected)


def test_a_cotangent_of_any_strides_gives_the_same_gradient():
    case, _ = case_and_loss("signed budget", seed=6)
    c = torch.randn(4, 3, generator=torch.Generator().manual_seed(6), dtype=D)
    found = []
    for cotangent in (c, strided(c, "transposed"), strided(c, "every other"), c[:1].expand(4, 3)):
        q = case.data["q"].clone().requires_grad_()
        w = solve(case.problem(q=q)).weights
        found.append(torch.autograd.grad(w, q, cotangent)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[3][0], found[0][0], **CLOSE)


GIVEN = {
    "flag": ("best_response", {"damping": 0.5}),
    "unrolled": ("projected_gradient", {"unroll": 4}),
    "pivot": ("pivot", {"block_pivots": 2}),
    "object": (BestResponse(damping=0.5), {}),
    "object of the default": (Pivot(block_pivots=2), {}),
}


@pytest.mark.parametrize("how", GIVEN)
def test_options_and_solver_objects_go_through_compile(how):
    solver, options = GIVEN[how]
    case = random_case("Simplex", 3, 4, seed=7)
    M, q = case.data["M"], case.data["q"]

    def weights(M, q):
        return solve(AffineVI(M, q, Simplex(), symmetric=True), solver, on_failure="ignore", **options).weights

    torch.testing.assert_close(compiled(weights, "aot_eager")(M, q), weights(M, q), rtol=0, atol=1e-8)  # to tolerance


def test_status_goes_through_compile_and_vmap():
    M = torch.stack((torch.eye(2, dtype=D), torch.zeros(2, 2, dtype=D), -torch.eye(2, dtype=D)))
    q = torch.tensor([[-1.0, 0.5], [-1.0, 0.0], [0.1, 0.2]], dtype=D)

    def status(M, q):
        solution = solve(AffineVI(M, q, FeasibleSet(lower=0.0)), on_failure="ignore")
        return solution.status, solution.converged

    expected = status(M, q)
    for found in (compiled(status, "aot_eager")(M, q), vmap(status)(M, q), compiled(vmap(status), "aot_eager")(M, q)):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_a_solve_of_what_is_not_mapped_over_works_inside_vmap():
    case = random_case("signed budget", 4, 40, seed=1, kind="rank deficient")  # some follow a path
    problem = case.problem()
    expected = solve(problem, on_failure="ignore").weights
    found = vmap(lambda x: solve(problem, on_failure="ignore").weights * x)(torch.ones(3, dtype=D))
    torch.testing.assert_close(found, expected.expand(3, 40, 4), **CLOSE)


def test_a_compiled_module_trains_as_the_eager_one():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.score = torch.nn.Linear(4, 3, dtype=D)

        def forward(self, x):
            return solve(AffineVI(torch.eye(3, dtype=x.dtype), -self.score(x), Simplex())).weights

    torch.manual_seed(0)
    layer, x = Layer(), torch.randn(5, 4, dtype=D, generator=torch.Generator().manual_seed(8))
    parameters = dict(layer.named_parameters())
    expected = grad(lambda p: functional_call(layer, p, (x,))[:, 0].sum())(parameters)
    compiled(layer, "aot_eager")(x)[:, 0].sum().backward()
    hold({k: v.grad for k, v in parameters.items()}, expected)


def arguments_of_operators(problem):
    """Every operator of ours with the arguments that a solve gives it."""
    standard = problem.standard().detach()
    data = tuple(getattr(standard, name) for name in opaque.TENSORS)
    data = (*data, standard.nonnegative, standard.equality, standard.symmetric)
    batch, handle = list(problem.batch_shape), opaque._handle("pivot", ())
    status = opaque._inspect(*data, batch, "ignore")
    w, _ = opaque._run(*data, handle, 1e-9, None)
    _, _, *active = opaque._certify(*data, w, status, 1e-9, batch, "ignore", True, True)
    free, tight, _, _, stiffness, passes = active
    return {
        "inspect": (opaque._inspect, (*data, batch, "ignore")),
        "run": (opaque._run, (*data, handle, 1e-9, None)),
        "certify": (opaque._certify, (*data, w, status, 1e-9, batch, "ignore", True, True)),
        "inverse": (opaque._inverse, (standard.M, stiffness, free, tight, passes, batch, "ignore")),
    }


SOME = ("Simplex", "Box half open", "signed budget", "Free masked")


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
@pytest.mark.parametrize("name", [n if n in SOME else pytest.param(n, marks=SLOW) for n in SETS])
def test_opcheck_passes_on_every_operator(name, dtype):
    problem = random_case(name, 3, 4, seed=9, dtype=dtype).problem()
    operators = arguments_of_operators(problem)
    assert len(operators) == 4
    for operator, arguments in operators.values():
        torch.library.opcheck(operator, arguments)


def test_opcheck_passes_for_an_empty_batch_and_a_single_coordinate():
    for L, batch in ((1, 3), (3, 0)):
        case = random_case("Simplex", L, 3, seed=10)
        problem = case.item(slice(0, batch)).problem()
        for operator, arguments in arguments_of_operators(problem).values():
            torch.library.opcheck(operator, arguments)
