"""The status of an answer, from problems of which it is known by construction what became of them."""

import warnings

import pytest
import torch
from problems import random_case

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
    Status,
    SumTo,
    exploitability,
    solve,
)

D = torch.float64
INF = torch.inf
EYE = torch.eye(3, dtype=D)
ZERO = torch.zeros(3, 3, dtype=D)
SOLVERS = ("pivot", "best_response", "projected_gradient", "scipy")
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def vector(*numbers):
    return torch.tensor(numbers, dtype=D)


def diagonal(*numbers):
    return torch.diag(vector(*numbers))


def beside_two_others(problem):
    """The problem as the middle one of three whose neighbours are easy, where its set is given by numbers."""
    M = torch.stack((EYE, problem.M, 2 * EYE))
    q = torch.stack((vector(-1.0, -0.5, 0.2), problem.q, vector(0.3, -0.4, -0.1)))
    return AffineVI(M, q, problem.feasible, l1=problem.l1)


def options_of(solver):
    return {"max_iter": 300} if solver in ("best_response", "projected_gradient") else {}


UNBOUNDED = {
    "linear, w ≥ 0": AffineVI(ZERO, vector(-1.0, 0.0, 1.0), NonNegative()),
    "linear, free": AffineVI(ZERO, vector(0.0, 0.0, 1e-3), Free()),
    "one flat direction": AffineVI(diagonal(0.0, 1.0, 2.0), vector(-1.0, 1.0, 1.0), Free()),
    "a flat sum": AffineVI(torch.ones(3, 3, dtype=D), vector(1.0, -1.0, 0.0), Free()),
    "a fixed sum, linear": AffineVI(ZERO, vector(1.0, 2.0, 3.0), SumTo(1.0)),
    "a fixed sum, flat along it": AffineVI(torch.ones(3, 3, dtype=D), vector(0.0, 0.5, 0.0), SumTo(-2.0)),
    "open above": AffineVI(ZERO, vector(1.0, -1.0, 1.0), FeasibleSet(vector(0.0, 0.0, -1.0), vector(1.0, INF, 1.0))),
    "open below": AffineVI(ZERO, vector(1.0, -1.0, 1.0), FeasibleSet(vector(0.0, 0.0, -INF), vector(1.0, 1.0, 0.0))),
    "cheaper than its price": AffineVI(ZERO, vector(-1.0, 0.5, 0.2), Free(), l1=0.9),
    "a game": AffineVI(diagonal(0.0, 1.0, 1.0) + torch.tensor([[0, 0, 0], [0, 0, 2.0], [0, -2.0, 0]], dtype=D),
                       vector(-1.0, 0.3, 0.2), Free()),
    "in small units": AffineVI(1e-9 * diagonal(0.0, 1.0, 2.0), 1e-9 * vector(-1.0, 1.0, 1.0), NonNegative()),
}  # fmt: skip


@pytest.mark.parametrize("what", UNBOUNDED)
@every_solver
def test_a_cost_without_a_minimum_is_unbounded(what, solver):
    problem = beside_two_others(UNBOUNDED[what])
    solution = solve(problem, solver, on_failure="ignore", **options_of(solver))
    assert not solution.converged[1]
    assert solution.status[1] == Status.UNBOUNDED
    assert solution.weights[1].isfinite().all()
    if solver == "pivot":
        assert solution.status.tolist() == [Status.SOLVED, Status.UNBOUNDED, Status.SOLVED]
        for i in (0, 2):
            alone = solve(AffineVI(problem.M[i], problem.q[i], FeasibleSet(*_bounds(problem)), l1=problem.l1))
            assert torch.equal(solution.weights[i], alone.weights)


def _bounds(problem):
    C = problem.feasible
    return C.lower, C.upper, C.total, C.equality


def flat_problems(feasible, bounded, seed, L=5, count=60, dtype=D):
    """``M`` positive semidefinite, every other one with a skew part, flat along one ``d`` that the set allows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(count, *shape, generator=generator, dtype=D)

    d = normal(L, 1)
    d = d.abs() if isinstance(feasible, NonNegative) else d - d.mean(1, True) if isinstance(feasible, SumTo) else d
    P = torch.eye(L, dtype=D) - d @ d.mT / (d.mT @ d)
    Y, A = P @ normal(L, 2 * L), P @ normal(L, L) @ P
    M = Y @ Y.mT / L + (torch.arange(count) % 2)[:, None, None] * (A - A.mT)
    slope = (0.1 + torch.rand(count, 1, generator=generator, dtype=D)) * (0.0 if bounded else -1.0)
    q = (P @ normal(L, 1) + slope.unsqueeze(-1) * d / (d.mT @ d)).squeeze(-1)
    return AffineVI(M.to(dtype), q.to(dtype), feasible)


@pytest.mark.parametrize("feasible", [Free(), NonNegative(), SumTo(0.7)], ids=lambda C: type(C).__name__)
@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
def test_flat_problems_are_unbounded_exactly_if_they_fall_along_the_flat_direction(feasible, dtype):
    for seed in (0,):
        falling = solve(flat_problems(feasible, False, seed, dtype=dtype), on_failure="ignore")
        said = falling.status == Status.UNBOUNDED
        if dtype == torch.float32:  # rounded data may fall to an end, far away
            said |= falling.status == Status.ITERATION_LIMIT
        assert said.all(), falling.status
        if dtype == D:
            level = solve(flat_problems(feasible, True, seed), on_failure="ignore")
            assert (level.status == Status.SOLVED).all(), level.status


BOUNDED = {
    "q in the range of M": AffineVI(diagonal(0.0, 1.0, 2.0), vector(0.0, 1.0, 1.0), Free()),
    "the flat direction is dear": AffineVI(diagonal(0.0, 1.0, 2.0), vector(-1.0, 1.0, 1.0), Free(), l1=1.5),
    "the flat direction costs": AffineVI(ZERO, vector(1.0, 0.0, 2.0), NonNegative()),
    "a bound stops it": AffineVI(ZERO, vector(-1.0, -1.0, 1.0), FeasibleSet(0.0, vector(3.0, 4.0, INF))),
    "a budget stops it": AffineVI(ZERO, vector(-1.0, -2.0, 1.0), Budget(5.0)),
    "all the same along a sum": AffineVI(ZERO, vector(1.0, 1.0, 1.0), SumTo(1.0)),
    "skew": AffineVI(torch.tensor([[0, 1.0, 0], [-1.0, 0, 0], [0, 0, 1.0]], dtype=D), vector(-1.0, 2.0, 1.0), Free()),
}


@pytest.mark.parametrize("what", BOUNDED)
def test_a_flat_problem_with_a_minimum_is_solved(what):
    solution = solve(BOUNDED[what], on_failure="raise")
    assert solution.status == Status.SOLVED


EMPTY = {
    "bounds that cross": lambda bad: Box(bad(vector(0.0, 0.0, 0.0), vector(0.0, 2.0, 0.0)), 1.0),
    "a total above the caps": lambda bad: CappedSimplex(bad(vector(0.5, 0.5, 0.5), vector(0.1, 0.1, 0.1))),
    "a total below the floors": lambda bad: FeasibleSet(0.0, INF, bad(vector(1.0), vector(-1.0))[..., 0]),
    "a negative budget": lambda bad: Budget(bad(vector(1.0), vector(-0.1))[..., 0]),
    "a sum out of reach": lambda bad: FeasibleSet(-1.0, 1.0, bad(vector(1.0), vector(3.5))[..., 0]),
    "nobody there": lambda bad: Simplex(mask=bad(vector(1.0, 1.0, 0.0), vector(0.0, 0.0, 0.0)) > 0),
    "a lower bound of inf": lambda bad: Box(bad(vector(0.0, 0.0, 0.0), vector(0.0, INF, 0.0)), INF),
}


@pytest.mark.parametrize("what", EMPTY)
@pytest.mark.parametrize("solver", [*SOLVERS, "mirror_descent"])
def test_an_empty_set_is_infeasible_and_its_neighbours_are_solved(what, solver):
    feasible = EMPTY[what](lambda good, bad: torch.stack((good, bad, good)))
    if solver == "mirror_descent" and what != "nobody there":
        return
    q = vector(-1.0, -0.5, 0.2).expand(3, 3).clone().requires_grad_()
    solution = solve(AffineVI(EYE, q, feasible), solver, on_failure="ignore")
    assert solution.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.SOLVED]
    assert solution.weights.isfinite().all()
    if solver != "scipy":
        (of_q,) = torch.autograd.grad(solution.weights.square().sum(), q)
        assert not of_q[1].any()
    assert torch.equal(solution.weights[0], solution.weights[2])
    with pytest.raises(ValueError, match=r"the set is empty.* at batch index 1 \(1 of 3\)"):
        solve(AffineVI(EYE, q, feasible), solver, on_failure="raise")


def test_an_empty_set_with_faulty_data_is_faulty():
    lower = torch.stack((vector(0.0, 0.0, 0.0), vector(0.0, 2.0, 0.0)))
    q = torch.stack((vector(1.0, 1.0, 1.0), vector(1.0, torch.nan, 1.0)))
    assert solve(AffineVI(EYE, q, Box(lower, 1.0)), on_failure="ignore").status.tolist() == [0, Status.FAULTY_DATA]


NOT_MONOTONE = {
    "concave": AffineVI(-EYE, vector(0.1, 0.2, 0.3), Box(-1.0, 1.0)),
    "a saddle": AffineVI(diagonal(1.0, 1.0, -0.5), vector(0.1, 0.2, 0.3), Box(-1.0, 1.0)),
    "coupled too much": AffineVI(EYE + 2 * (1 - EYE), vector(-0.1, 0.2, 0.3), NonNegative()),
    "on a simplex": AffineVI(EYE + 2 * (1 - EYE), vector(-0.1, 0.2, 0.3), Simplex()),
    "a player of negative curvature": AffineVI(diagonal(-0.5, 1.0, 1.0)
        + torch.tensor([[0, 1.0, 0], [-1.0, 0, 0], [0, 0, 0]], dtype=D), vector(0.1, 0.2, 0.3), Box(-1.0, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_MONOTONE)
@every_solver
def test_what_is_not_monotone_is_said_and_its_weights_are_kept(what, solver):
    problem = beside_two_others(NOT_MONOTONE[what])
    solution = solve(problem, solver, on_failure="ignore", **options_of(solver))
    assert solution.status[1] == Status.NOT_MONOTONE
    assert solution.weights.isfinite().all()
    assert solution.converged.tolist() == [True, False, True]
    with pytest.raises(ConvergenceError, match=r"negative eigenvalue.* at batch index 1 \(1 of 3\)"):
        solve(problem, solver, **options_of(solver), on_failure="raise")
    with pytest.warns(UserWarning, match=r"negative eigenvalue.* at batch index 1 \(1 of 3\)"):
        solve(problem, solver, **options_of(solver))


@pytest.mark.parametrize("what", [name for name in NOT_MONOTONE if name != "a player of negative curvature"])
def test_without_the_check_a_stationary_point_is_solved(what):
    solution = solve(NOT_MONOTONE[what], on_failure="ignore", check_monotone=False)
    assert solution.converged == (solution.residual <= solution.tolerance)
    assert solution.status in (Status.SOLVED, Status.ITERATION_LIMIT)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_what_the_set_does_not_allow_to_move_may_have_any_curvature(scale):
    M = scale * (EYE + 2 * (1 - EYE))  # indefinite, yet not along these sets
    for problem in (
        AffineVI(M, scale * vector(-0.1, 0.2, 0.3), Box(vector(-1.0, 0.5, 0.5), vector(1.0, 0.5, 0.5))),
        AffineVI(M, scale * vector(-0.1, 0.2, 0.3), Free(mask=torch.tensor([True, False, False]))),
        AffineVI(EYE * scale - 0.3 * scale, scale * vector(-0.1, 0.2, 0.3), Simplex()),  # only along 1
        AffineVI(EYE * scale - 9 * scale, scale * vector(-0.1, 0.2, 0.3), SumTo(2.0)),
    ):
        assert solve(problem, on_failure="raise").converged
    negative = AffineVI(EYE * scale - 9 * scale, scale * vector(-0.1, 0.2, 0.3), Budget(2.0))
    assert solve(negative, on_failure="ignore").status == Status.NOT_MONOTONE


def test_a_game_whose_players_are_convex_is_solved_where_the_residual_vanishes_monotone_or_not():
    M = torch.tensor([[1.0, 3.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=D)  # not monotone, not symmetric
    problem = AffineVI(M, vector(-1.0, -1.0, -0.5), Box(0.0, 1.0))
    assert torch.linalg.eigvalsh(0.5 * (M + M.mT))[0] < -0.1
    solution = solve(problem, on_failure="ignore")
    if solution.residual <= solution.tolerance:
        assert solution.status == Status.SOLVED
        assert exploitability(problem, solution.weights) <= 1e-12
    symmetric = AffineVI(M, problem.q, problem.feasible, symmetric=True)  # says that it is a program
    assert solve(symmetric, on_failure="ignore").status == Status.NOT_MONOTONE
    own = M.clone()
    own[2, 2] = -0.1
    assert solve(AffineVI(own, problem.q, problem.feasible), on_failure="ignore").status == Status.NOT_MONOTONE


@every_solver
def test_games_that_are_not_monotone_are_solved_only_at_equilibria(solver):
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(40, 3, 3, generator=generator, dtype=D) + 0.5 * EYE
    M.diagonal(dim1=1, dim2=2).abs_()
    problem = AffineVI(M, torch.randn(40, 3, generator=generator, dtype=D), Box(-1.0, 1.0))
    solution = solve(problem, solver, on_failure="ignore", **options_of(solver))
    assert solution.converged.any()
    gain = exploitability(problem, solution.weights)
    assert gain[solution.converged].max() <= 1e-7  # to tolerances of 1e-9 to 1e-6 squared or so
    monotone = torch.linalg.eigvalsh(0.5 * (M + M.mT))[:, 0] >= -1e-12
    unsolved = ~solution.converged
    assert (solution.status[unsolved & ~monotone] == Status.NOT_MONOTONE).all()
    assert (solution.status[unsolved & monotone] == Status.ITERATION_LIMIT).all()


@pytest.mark.parametrize("solver", ["best_response", "projected_gradient"])
def test_too_few_iterations_are_said_with_the_first_index_and_the_last_iterate(solver):
    case = random_case("Free", 4, (2, 3), seed=1, l1=False)
    M, q = case.data["M"].clone(), case.data["q"].clone()
    M[0], q[0] = torch.eye(4, dtype=D), 0.0 * q[0]  # solved from the start
    problem = case.problem(M=M, q=q)
    options = {"max_iter": 1, "damping": 0.5} if solver == "best_response" else {"max_iter": 1}
    solution = solve(problem, solver, on_failure="ignore", **options)
    assert (solution.status[0] == Status.SOLVED).all()
    assert (solution.status[1] == Status.ITERATION_LIMIT).all()
    assert (solution.iterations == 1).all()
    assert solution.weights[1].any()
    with pytest.raises(ConvergenceError, match=r"not solved to tol=1e-09.* at batch index \(1, 0\) \(3 of 6\)"):
        solve(problem, solver, on_failure="raise", **options)


@pytest.mark.parametrize("solver", [*SOLVERS, "mirror_descent"])
@pytest.mark.parametrize("what", ["M", "q", "l1"])
def test_faulty_data_are_said_and_give_nan(solver, what):
    data = {"M": EYE.expand(3, 3, 3).clone(), "q": vector(-1.0, 0.1, 0.2).expand(3, 3).clone()}
    data["l1"] = torch.full((3, 3), 0.1, dtype=D)
    data[what][1, ..., 0] = -1.0 if what == "l1" else torch.nan
    solution = solve(AffineVI(data["M"], data["q"], l1=data["l1"]), solver, on_failure="ignore")
    assert solution.status.tolist() == [Status.SOLVED, Status.FAULTY_DATA, Status.SOLVED]
    assert solution.weights[1].isnan().all()


def test_a_runaway_answer_is_never_solved_however_large_the_tolerance_of_its_size():
    """Two rows as a monotone problem: an unmet row makes multipliers run away, and with them every size."""
    generator = torch.Generator().manual_seed(0)
    B, L, m = 40, 4, 2
    Y = torch.randn(B, L, 2 * L, generator=generator, dtype=D)
    A = torch.randn(B, m, L, generator=generator, dtype=D)
    K = torch.zeros(B, L + m, L + m, dtype=D)
    K[:, :L, :L] = Y @ Y.mT / (2 * L) + 0.05 * torch.eye(L, dtype=D)
    K[:, :L, L:], K[:, L:, :L] = A.mT, -A
    met = (A @ torch.rand(B, L, 1, generator=generator, dtype=D)).squeeze(-1)
    never = -A.abs().sum(-1) - 1.0
    upper = torch.cat((torch.ones(B, L, dtype=D), torch.full((B, m), INF, dtype=D)), -1)
    for side, solvable in ((met, True), (never, False)):
        q = torch.cat((2 * torch.randn(B, L, generator=generator, dtype=D), side), -1)
        problem = AffineVI(K, q, Box(torch.zeros(B, L + m, dtype=D), upper))
        for solver, options in (("pivot", {}), ("projected_gradient", {"max_iter": 200})):
            solution = solve(problem, solver, on_failure="ignore", **options)
            missed = ((A @ solution.weights[:, :L, None]).squeeze(-1) - side).amax(-1)
            assert (missed[solution.converged] <= 1e-6).all()
            assert not solution.converged.any() or solvable
            assert solution.weights.isfinite().all()


def test_every_status_has_a_number_and_a_sentence_and_nothing_is_said_about_what_is_solved():
    assert [status.value for status in Status] == list(range(6))
    assert len({status.message for status in Status}) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve(AffineVI(EYE, vector(-1.0, 0.0, 0.1)))
    assert Status(int(solution.status)) is Status.SOLVED
