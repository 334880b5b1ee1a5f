"""What is wrong is said early and in words: the argument, its shape, the first offending batch index."""

import warnings

import numpy as np
import pytest
import torch
from problems import SETS, random_case

from solvers import (
    AffineVI,
    Box,
    Budget,
    CappedSimplex,
    ConvergenceError,
    FeasibleSet,
    Free,
    Simplex,
    Status,
    SumTo,
    solve,
)

EYE = torch.eye(3, dtype=torch.float64)
Q = torch.tensor([[-1.0, -0.5, 0.2]] * 6, dtype=torch.float64).reshape(2, 3, 3)
INF = float("inf")


def with_fault(value, index=(1, 2, 0), like=Q):
    faulty = like.clone()
    faulty[index] = value
    return faulty


WRONG_SHAPES = {
    "M not square": (lambda: AffineVI(torch.zeros(3, 4), torch.zeros(3)), r"M must have shape .*3, 3.*\(3, 4\)"),
    "M of another L": (lambda: AffineVI(torch.eye(4), torch.zeros(3)), r"M must .*q of shape \(3,\).*\(4, 4\)"),
    "M a vector": (lambda: AffineVI(torch.zeros(3), torch.zeros(3)), r"M must .*\(3,\)"),
    "q a number": (lambda: AffineVI(torch.eye(3), torch.tensor(1.0)), r"q must have shape .*L ≥ 1.*\(\)"),
    "q without coordinates": (lambda: AffineVI(torch.zeros(0, 0), torch.zeros(0)), r"q must have .*\(0,\)"),
    "batches that differ": (lambda: AffineVI(torch.eye(3).expand(4, 3, 3), torch.zeros(5, 3)), r"q.*\(5,\).*\(4,\)"),
    "l1 too long": (lambda: AffineVI(EYE, Q[0], l1=Q.new_ones(4)), r"l1 must broadcast to .*3.*\(4,\)"),
    "lower too long": (lambda: AffineVI(EYE, Q[0], Box(Q.new_zeros(4), 1.0)), r"lower must .*\(4,\)"),
    "cap too long": (lambda: AffineVI(EYE, Q[0], CappedSimplex(Q.new_ones(2))), r"upper must .*\(2,\)"),
    "mask too long": (lambda: AffineVI(EYE, Q[0], Free(mask=torch.ones(4) > 0)), r"mask must .*\(4,\)"),
    "total of another batch": (lambda: AffineVI(EYE, Q[0], Budget(Q.new_ones(2))), r"total .*\(2,\).*\(3,\)"),
}


@pytest.mark.parametrize("what", WRONG_SHAPES)
def test_a_wrong_shape_names_the_argument_and_its_shape(what):
    build, message = WRONG_SHAPES[what]
    with pytest.raises(ValueError, match=message):
        build()


def test_a_wrong_type_dtype_or_device_names_the_argument():
    with pytest.raises(TypeError, match=r"M must be a floating point tensor, but got a tensor of dtype torch.int64"):
        AffineVI(torch.eye(3).long(), torch.zeros(3))
    with pytest.raises(TypeError, match="q must be a floating point tensor, but got list"):
        AffineVI(torch.eye(3), [0.0, 0.0, 0.0])
    with pytest.raises(TypeError, match="feasible must be a set"):
        AffineVI(torch.eye(3), torch.zeros(3), "simplex")
    with pytest.raises(ValueError, match=r"M has dtype torch.float64, but q has dtype torch.float32"):
        AffineVI(EYE, torch.zeros(3))
    with pytest.raises(ValueError, match=r"l1 has dtype torch.float32"):
        AffineVI(EYE, Q, l1=torch.ones(3))
    with pytest.raises(ValueError, match=r"mask must be boolean"):
        AffineVI(EYE, Q, Simplex(mask=torch.ones(3)))
    with pytest.raises(ValueError, match=r"M is on meta, but q is on cpu"):
        AffineVI(EYE.to("meta"), Q)


@pytest.mark.parametrize("value", ["0.5", [0.5], np.array([0.5])], ids=["text", "list", "array"])
def test_what_is_neither_a_number_nor_a_tensor_names_the_argument(value):
    for name, build in {
        "l1": lambda: AffineVI(EYE, Q, l1=value),
        "lower": lambda: Box(value, 1.0),
        "upper": lambda: CappedSimplex(value),
        "total": lambda: Budget(value),
    }.items():
        with pytest.raises(TypeError, match=rf"{name} must be a number or a tensor, but got {type(value).__name__}"):
            build()
    with pytest.raises(TypeError, match=r"lower must be .* NoneType"):
        FeasibleSet(None)
    with pytest.raises(TypeError, match=r"mask must be a boolean tensor, but got list"):
        Simplex(mask=[True, False, True])
    number = np.float32(0.5)  # a number all the same
    assert solve(AffineVI(EYE, Q, Budget(number), l1=number), on_failure="raise").converged.all()


@pytest.mark.parametrize("value", [1.5, "3"])
def test_a_bound_on_iterations_is_a_whole_number(value):
    with pytest.raises(ValueError, match=rf"max_iter must be a whole number, at least 1, but got {value!r}"):
        solve(AffineVI(EYE, Q), max_iter=value)


def test_a_number_that_makes_no_sense_is_refused_when_the_problem_is_stated():
    for build, message in (
        (lambda: AffineVI(EYE, Q, Box(1.0, 0.0)), "lower must be at most upper, but got lower=1.0 and upper=0.0"),
        (lambda: AffineVI(EYE, Q, Box(float("nan"), 1.0)), "lower"),
        (lambda: AffineVI(EYE, Q, l1=-0.5), "l1 must be non-negative .*-0.5"),
        (lambda: AffineVI(EYE, Q, l1=INF), "l1"),
        (lambda: AffineVI(EYE, Q, CappedSimplex(0.2)), "total=1.0 is out of reach: 3 weights .* sum to between"),
        (lambda: AffineVI(EYE, Q, Budget(-1.0)), "total=-1.0 is out of reach"),
        (lambda: AffineVI(EYE, Q, FeasibleSet(0.0, 1.0, total=4.0)), "total=4.0 is out of reach"),
        (lambda: AffineVI(EYE, Q, SumTo(float("nan"))), "total"),
        (lambda: AffineVI(EYE, Q, SumTo(INF)), "total"),
        (lambda: AffineVI(EYE, Q, Box(INF, INF)), "lower"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(build())


EYES = EYE.expand(2, 3, 3, 3)
FAULTS = {
    "NaN in M": (lambda: AffineVI(with_fault(torch.nan, (1, 2, 0, 1), EYES), Q), "M holds NaN or Inf"),
    "Inf in M": (lambda: AffineVI(with_fault(INF, (1, 2, 0, 1), EYES), Q), "M holds NaN or Inf"),
    "NaN in q": (lambda: AffineVI(EYE, with_fault(torch.nan)), "q holds NaN or Inf"),
    "Inf in q": (lambda: AffineVI(EYE, with_fault(-INF)), "q holds NaN or Inf"),
    "NaN in l1": (lambda: AffineVI(EYE, Q, Free(), l1=with_fault(torch.nan, like=Q.abs())), "l1 holds NaN or Inf"),
    "Inf in l1": (lambda: AffineVI(EYE, Q, l1=with_fault(INF, like=Q.abs())), "l1 holds NaN or Inf"),
    "negative l1": (lambda: AffineVI(EYE, Q, Free(), l1=with_fault(-0.1, like=Q.abs())), "l1 is negative"),
    "negative l1 on the simplex": (lambda: AffineVI(EYE, Q, l1=with_fault(-0.1, like=Q.abs())), "l1 is negative"),
    "NaN in lower": (lambda: AffineVI(EYE, Q, Box(with_fault(torch.nan), INF)), "lower or upper holds NaN"),
    "lower > upper": (lambda: AffineVI(EYE, Q, Box(with_fault(2.0), 1.0)), "the set is empty: lower is above upper"),
    "lower = inf": (lambda: AffineVI(EYE, Q, Box(with_fault(INF), INF)), "the set is empty: lower is inf"),
    "NaN in total": (lambda: AffineVI(EYE, Q, SumTo(with_fault(torch.nan, (1, 2), Q[..., 0]))), "total holds NaN"),
    "total too large": (lambda: AffineVI(EYE, Q, FeasibleSet(0.0, 1.0, with_fault(4.0, (1, 2), Q[..., 0].abs()))),
                        "the set is empty: total is above the sum of upper"),
    "total too small": (lambda: AffineVI(EYE, Q, Budget(with_fault(-1.0, (1, 2), Q[..., 0].abs()))),
                        "the set is empty: total is below the sum of lower"),
    "caps too small": (lambda: AffineVI(EYE, Q, CappedSimplex(with_fault(0.1, (1, 2), Q.abs()))),
                       "the set is empty: total is above"),
    "empty mask": (lambda: AffineVI(EYE, Q, Simplex(mask=with_fault(False, (1, 2), Q.abs() > 0))),
                   "the set is empty: mask leaves no coordinate"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_a_faulty_item_is_named_by_its_batch_index_and_never_spoils_its_neighbours(what):
    build, message = FAULTS[what]
    problem = build()
    with pytest.raises(ValueError, match=rf"{message}.* at batch index \(1, 2\) \(1 of 6\)"):
        solve(problem, on_failure="raise")
    with pytest.warns(UserWarning, match=message):
        warned = solve(problem, on_failure="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignored = solve(problem, on_failure="ignore")
    C = problem.feasible
    empty = "the set is empty" in message
    for solution in (warned, ignored):
        assert solution.weights[1, 2].isnan().all() != empty
        assert solution.weights[1, 2].isfinite().all() == empty
        assert solution.status[1, 2] == (Status.INFEASIBLE if empty else Status.FAULTY_DATA)
        assert solution.residual[1, 2].isnan()
        assert solution.converged.sum() == 5
        for i, j in ((0, 0), (1, 1)):

            def item(tensor, trailing=1, i=i, j=j):
                batched = isinstance(tensor, torch.Tensor) and tensor.ndim > trailing
                return tensor[i, j] if batched else tensor

            feasible = FeasibleSet(item(C.lower), item(C.upper), item(C.total, 0), C.equality, item(C.mask))
            alone = solve(AffineVI(item(problem.M, 2), item(problem.q), feasible, l1=item(problem.l1)))
            torch.testing.assert_close(solution.weights[i, j], alone.weights, rtol=0, atol=1e-15)  # M = I: exact


def test_every_fault_is_reported_not_only_the_first():
    q = with_fault(torch.nan, (0, 1, 2))
    with pytest.raises(ValueError, match=r"M holds .*\(1, 0\).*q holds .*\(0, 1\)"):
        solve(AffineVI(with_fault(INF, (1, 0, 2, 2), EYE.expand(2, 3, 3, 3)), q), on_failure="raise")


def test_a_single_faulty_problem_raises_even_when_asked_to_warn_and_names_no_index():
    q = Q[0, 0].clone()
    q[1] = torch.nan
    with pytest.raises(ValueError, match="q holds NaN") as caught:
        solve(AffineVI(EYE, q))
    assert "index" not in str(caught.value)
    assert solve(AffineVI(EYE, q), on_failure="ignore").weights.isnan().all()


OTHERS = ("best_response", "projected_gradient", "mirror_descent", "cvxpylayers", "scipy", "mean")


@pytest.mark.parametrize("solver", OTHERS)
def test_a_faulty_item_does_not_spoil_its_neighbours_in_any_solver(solver):
    clean = solve(AffineVI(EYE, Q[0]), solver, on_failure="ignore").weights
    solution = solve(AffineVI(EYE, with_fault(torch.nan, (1, 2), Q[0])), solver, on_failure="ignore")
    assert solution.weights[1].isnan().all()
    assert not solution.converged[1]
    torch.testing.assert_close(solution.weights[[0, 2]], clean[[0, 2]], rtol=0, atol=1e-9)  # SCS: 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "simplex"}, "solver must be one of 'pivot', .* but got 'simplex'"),
        ({"gradient": "explicit"}, "gradient must be one of .*'unrolled'.* but got 'explicit'"),
        ({"gradient": "unrolled"}, "solver 'pivot' takes gradient='implicit', but got 'unrolled'"),
        ({"on_failure": "retry"}, "on_failure must be one of .* but got 'retry'"),
        ({"tol": 0.0}, "tol must be positive, but got 0.0"),
        ({"tol": float("nan")}, "tol must be positive"),
        ({"max_iter": 0}, "max_iter must be a whole number, at least 1, but got 0"),
        ({"unroll": 3}, "solver 'pivot' does not take .*unroll"),
        ({"block_pivots": 0}, "block_pivots must be at least 1, but got 0"),
        ({"solver": "best_response", "damping": 1.5}, r"damping must be in \(0, 1\], but got 1.5"),
        ({"solver": "best_response", "sweep": "random"}, "sweep must be 'jacobi' or .* 'random'"),
        ({"solver": "best_response", "unroll": 0}, "unroll must be .*but got 0"),
        ({"solver": "projected_gradient", "unroll": -1}, "unroll must be .*but got -1"),
        ({"solver": "mirror_descent", "unroll": 2.5}, "unroll must be .*but got 2.5"),
        ({"solver": "softmax", "temperature": 0.0}, "temperature must be positive, but got 0.0"),
    ],
    ids=str,
)
def test_unknown_flags_and_options_are_refused_with_those_that_exist(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        solve(AffineVI(EYE, Q), **options)


def test_only_the_options_that_a_solver_lacks_are_named():
    with pytest.raises(TypeError, match="does not take dampening; its options are unroll, damping, sweep"):
        solve(AffineVI(EYE, Q), "best_response", unroll=3, dampening=0.5)


def test_a_program_that_is_not_convex_is_reported_and_keeps_its_weights():
    M = EYE.expand(2, 3, 3, 3).clone()
    M[1, 2, 0, 1] = M[1, 2, 1, 0] = 2.0
    with pytest.raises(ConvergenceError, match=r"negative eigenvalue.*\(1, 2\)"):
        solve(AffineVI(M, Q), on_failure="raise")
    solution = solve(AffineVI(M, Q), on_failure="ignore")
    assert solution.converged.sum() == 5
    assert solution.status[1, 2] == Status.NOT_MONOTONE
    assert solution.weights.isfinite().all()
    assert solve(AffineVI(M, Q), on_failure="raise", check_monotone=False).converged.all()
    gram = torch.ones(3, 3, dtype=torch.float64)
    solve(AffineVI(gram, Q[0, 0]), on_failure="raise")  # singular, but monotone
    masked = Simplex(mask=torch.tensor([True, False, True]))
    solve(AffineVI(M, Q, masked), on_failure="raise")  # not where the coordinates do not exist


@pytest.mark.parametrize("name", SETS)
def test_an_answer_above_its_tolerance_raises_warns_or_says_nothing_and_is_always_marked(name):
    problem = random_case(name, 6, (2, 20), seed=1, kind="game").problem()
    options = {"solver": "projected_gradient", "max_iter": 1}
    with pytest.raises(ConvergenceError, match=r"not solved to tol=1e-09, residual up to .* index \(\d, \d+\)"):
        solve(problem, on_failure="raise", **options)
    with pytest.warns(UserWarning, match="not solved to tol"):
        warned = solve(problem, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignored = solve(problem, on_failure="ignore", **options)
    assert torch.equal(warned.weights, ignored.weights)
    assert warned.weights.isfinite().all()
    assert not warned.converged.all()


def test_a_warning_points_at_the_line_of_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(AffineVI(EYE, with_fault(torch.nan)))
        solve(AffineVI(EYE + 0.5, Q), "projected_gradient", max_iter=1)
    assert [warning.filename for warning in caught] == [__file__, __file__]
