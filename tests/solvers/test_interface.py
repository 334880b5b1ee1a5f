"""`solve` from its user's side: dtypes, shapes, batches, options, and what it gives back."""

import pytest
import torch
from problems import SETS, random_case

import solvers
from solvers import AffineVI, Box, Budget, CappedSimplex, FeasibleSet, Free, NonNegative, Simplex, SumTo, solve

OURS = ("pivot", "best_response", "projected_gradient", "mirror_descent")
EVERY = (*OURS, "cvxpylayers", "scipy", "softmax", "mean")
every_solver = pytest.mark.parametrize("solver", EVERY)


def simplex(L=4, batch=(), seed=0, dtype=torch.float64):
    case = random_case("Simplex", L, (*batch, 1), seed, dtype=dtype)
    return AffineVI(case.data["M"].squeeze(len(batch)), case.data["q"].squeeze(len(batch)))


def test_all_flags_are_available():
    assert set(solvers.available_solvers()) >= set(EVERY)


@every_solver
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_of_the_weights_is_that_of_q(solver, dtype):
    problem = simplex(batch=(3,), dtype=dtype)
    solution = solve(problem, solver, on_failure="ignore")
    assert solution.weights.dtype == dtype
    # float32 is solved to 1e-5 of a problem of condition 10; half precision is float32 inside, and its answer rounded
    exact = solve(AffineVI(problem.M.double(), problem.q.double()), solver, on_failure="ignore").weights
    atol = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(solution.weights.double(), exact, rtol=0, atol=atol)
    assert solution.converged.dtype == torch.bool
    assert solution.residual.dtype == solution.tolerance.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_half_precision_works_on_every_set_forward_and_backward(name, dtype):
    case = random_case(name, 4, 5, seed=1)
    for bound in ("cap", "inner"):  # rounded to few bits, keep the set non-empty
        if bound in case.data:
            case.data[bound] = case.data[bound] * 1.1 if bound == "cap" else 0.9 * case.data[bound]
    case = type(case)(name, {k: v.to(dtype) for k, v in case.data.items()}, case.mask).leaves()
    solution = solve(case.problem(), on_failure="raise")
    assert solution.weights.dtype == dtype
    solution.weights.float().square().sum().backward()
    for of, tensor in case.data.items():
        assert tensor.grad is None or (tensor.grad.dtype == dtype and tensor.grad.isfinite().all()), of


@every_solver
def test_an_empty_batch_gives_empty_answers_and_zero_gradients(solver):
    for shape in ((0,), (0, 3), (3, 0)):
        problem = simplex(batch=(3,))
        q = problem.q[0].expand(*shape, 4).clone().requires_grad_()
        M = problem.M[0].clone().requires_grad_()
        solution = solve(AffineVI(M, q), solver)
        assert solution.weights.shape == (*shape, 4)
        for field in (solution.residual, solution.tolerance, solution.converged, solution.iterations):
            assert field.shape == shape
        if solution.weights.requires_grad:
            solution.weights.sum().backward()
            assert M.grad is None or not M.grad.any()


@every_solver
def test_a_single_coordinate_works(solver):
    problem = simplex(L=1, batch=(2,))
    torch.testing.assert_close(solve(problem, solver).weights, torch.ones(2, 1, dtype=torch.float64), rtol=0, atol=1e-9)


@every_solver
def test_any_number_of_batch_dimensions_works(solver):
    flat = simplex(batch=(6,), seed=2)
    expected = solve(flat, solver, on_failure="ignore")
    for shape in ((2, 3), (1, 6, 1), (6,)):
        problem = AffineVI(flat.M.reshape(*shape, 4, 4), flat.q.reshape(*shape, 4))
        solution = solve(problem, solver, on_failure="ignore")
        assert solution.iterations.shape == solution.residual.shape == shape
        torch.testing.assert_close(solution.weights.reshape(6, 4), expected.weights, rtol=0, atol=1e-9)  # SCS: 1e-12
    single = solve(AffineVI(flat.M[4], flat.q[4]), solver, on_failure="ignore")
    assert single.weights.shape == (4,)
    assert single.residual.shape == single.converged.shape == ()
    torch.testing.assert_close(single.weights, expected.weights[4], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_batch_dimensions_broadcast(name):
    case = random_case(name, 3, (2, 5), seed=3)
    rows = {k: v[:, :1] if k in ("M", "budget", "sum", "inner") else v[:1] for k, v in case.data.items()}
    rows = {k: v.squeeze(0) if k == "q" else v for k, v in rows.items()}  # q (5, 3), M (2, 1, 3, 3), bounds (1, 5, 3)
    if "inner" in rows:
        rows["inner"] = 0.5 * (rows["low"] + rows["high"]).sum(-1)[0, 0]
    if case.mask is not None and "cap" in rows:
        rows["cap"] = torch.full_like(rows["cap"], 0.9)[..., :1]
    mask = None if case.mask is None else torch.tensor([True, False, True])
    small = type(case)(name, rows, mask)
    full = {k: v.expand(2, 5, *v.shape[v.ndim - (2 if k == "M" else 0 if k in ("budget", "sum", "inner") else 1) :])
            if k not in ("budget", "sum", "inner") else v.expand(2, 5) for k, v in rows.items()}  # fmt: skip
    big = type(case)(name, full, None if mask is None else mask.expand(2, 5, 3))
    ours, expected = solve(small.problem(), on_failure="raise"), solve(big.problem(), on_failure="raise")
    assert ours.weights.shape == (2, 5, 3)
    assert torch.equal(ours.weights, expected.weights)


@pytest.mark.parametrize("solver", OURS)
def test_non_contiguous_and_expanded_tensors_work_and_are_not_changed(solver):
    problem = simplex(batch=(6,), seed=4)
    expected = solve(problem, solver).weights
    M = problem.M.transpose(0, 2).contiguous().transpose(0, 2)
    q = torch.stack((problem.q, problem.q), -1)[..., 0]
    before = M.clone(), q.clone()
    assert not M.is_contiguous()
    assert not q.is_contiguous()
    assert torch.equal(solve(AffineVI(M, q), solver).weights, expected)
    assert torch.equal(M, before[0])
    assert torch.equal(q, before[1])
    expanded = AffineVI(problem.M[:1].expand(6, 4, 4), problem.q[:1].expand(6, 4), l1=torch.ones(()).double().expand(4))
    weights = solve(expanded, solver).weights
    torch.testing.assert_close(weights, expected[:1].expand(6, 4), rtol=0, atol=1e-8)  # the tolerance is 1e-9


def test_every_field_of_a_solution_says_what_it_promises():
    problem = simplex(batch=(5,), seed=5)
    solution = solve(problem, "projected_gradient", tol=1e-4)
    assert solution.solver == "projected_gradient"
    assert solution.gradient == "implicit"
    assert (solution.iterations > 0).all()
    assert not solution.iterations.is_floating_point()
    assert torch.equal(solution.converged, solution.residual <= solution.tolerance)
    assert torch.equal(solution.converged, solution.status == solvers.Status.SOLVED)
    assert solution.status.dtype == torch.int64
    assert (solve(problem, "projected_gradient", tol=1e-9).iterations > solution.iterations).all()


def test_unroll_makes_exactly_that_many_iterations_and_never_complains():
    problem = simplex(batch=(5,), seed=6)
    for solver in OURS[1:]:
        solution = solve(problem, solver, unroll=3, on_failure="raise")
        assert (solution.iterations == 3).all()
        assert not solution.converged.all()


@pytest.mark.parametrize("feasible", [Box(), NonNegative(), Budget(), SumTo(), Free(), CappedSimplex(0.5)], ids=str)
def test_a_solver_that_cannot_take_a_set_says_which_sets_it_takes(feasible):
    problem = AffineVI(torch.eye(4), torch.zeros(4), feasible)
    for solver in ("mirror_descent", "softmax"):
        with pytest.raises(ValueError, match="Simplex"):
            solve(problem, solver)
    if feasible.total is None:
        with pytest.raises(ValueError, match=r"mean takes sets with a total \(Simplex"):
            solve(problem, "mean")
    else:
        with pytest.raises(ValueError, match=r"Box, NonNegative, Free.*jacobi"):
            solve(problem, "best_response", sweep="gauss_seidel")


def test_mean_and_softmax_are_what_they_say():
    q = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 9.0, 9.0]], requires_grad=True)
    mask = torch.tensor([True, True, True, False])
    problem = AffineVI(torch.eye(4), q, Simplex(mask=mask))
    thirds = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(2, 4) / 3
    torch.testing.assert_close(solve(problem, "mean").weights, thirds)
    expected = torch.cat(((-q[:, :3] / 2).softmax(-1), torch.zeros(2, 1)), 1)
    weights = solve(problem, "softmax", temperature=2.0).weights
    torch.testing.assert_close(weights, expected)
    (ours,) = torch.autograd.grad(weights[:, 0].sum(), q, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected[:, 0].sum(), q)[0])


class Uniform:
    """A solver from outside: equal weights, scaled."""

    gradients = ("own",)
    to_tolerance = False

    def __init__(self, scale=1.0):
        self.scale = scale

    def check_set(self, feasible):
        if feasible.total is None:
            raise ValueError("uniform takes sets with a total.")

    def __call__(self, problem, tol, max_iter):
        w = self.scale * problem.total.expand_as(problem.q) / problem.size
        return w, torch.zeros(problem.batch, dtype=torch.long)


def test_a_registered_solver_is_used_like_ours(monkeypatch):
    monkeypatch.setattr(solvers.registry, "_SOLVERS", dict(solvers.registry._SOLVERS))
    solvers.register_solver("uniform", Uniform)
    assert "uniform" in solvers.available_solvers()
    solution = solve(simplex(batch=(3,)), "uniform", scale=2.0)
    assert torch.equal(solution.weights, torch.full((3, 4), 0.5, dtype=torch.float64))
    assert not solution.converged.any()
    assert solution.solver == "uniform"
    with pytest.raises(ValueError, match="'uniform' is registered already"):
        solvers.register_solver("uniform", Uniform)
    with pytest.raises(ValueError, match="uniform takes sets with a total"):
        solve(AffineVI(torch.eye(2), torch.zeros(2), Free()), "uniform")


@pytest.mark.parametrize("line", ["FeasibleSet(0.0, 1.0, 0.5)", "Simplex()", "Budget(2.0)"])
def test_sets_are_shown_in_words(line):
    shown = repr(eval(line, {"FeasibleSet": FeasibleSet, "Simplex": Simplex, "Budget": Budget}))
    assert line.split("(")[0] in shown
    assert "total=" in shown
