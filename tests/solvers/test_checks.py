"""What is checked of data and how it is reported, by themselves: every fault, its edge, its message and its index."""

import warnings

import pytest
import torch

from solvers import AffineVI, Box, Budget, ConvergenceError, FeasibleSet, Free, Simplex, Status, SumTo
from solvers.checks import (
    SINGULAR,
    find_faults,
    looks_sound,
    out_of_reach,
    report,
    report_failures,
    report_gradient,
)

D = torch.float64
INF = torch.inf


def vector(*numbers):
    return torch.tensor(numbers, dtype=D)


def standard(M=None, q=None, feasible=None, l1=0.0, count=3):
    M = torch.eye(2, dtype=D).expand(count, 2, 2).clone() if M is None else M
    q = torch.zeros(count, 2, dtype=D) if q is None else q
    return AffineVI(M, q, feasible, l1=l1).standard()


def one_bad(good, bad):
    return torch.stack((good, bad, good))


def faults(problem):
    return {message: (items.tolist(), status) for message, items, status in find_faults(problem) if items.any()}


MIDDLE = [False, True, False]
ZEROS, EYE = vector(0.0, 0.0), torch.eye(2, dtype=D)
CASES = {
    "M holds NaN or Inf": lambda v: {"M": one_bad(EYE, EYE + torch.tensor([[0.0, v], [0.0, 0.0]], dtype=D))},
    "q holds NaN or Inf": lambda v: {"q": one_bad(ZEROS, vector(0.0, v))},
    "l1 holds NaN or Inf": lambda v: {"l1": one_bad(ZEROS, vector(0.0, v).abs()), "feasible": Free()},
    "total holds NaN or Inf": lambda v: {"feasible": SumTo(vector(1.0, v, 1.0))},
}


@pytest.mark.parametrize("message", CASES)
@pytest.mark.parametrize("value", [torch.nan, INF, -INF])
def test_what_is_not_finite_is_a_fault_of_its_item(message, value):
    if value == -INF and message.startswith("l1"):
        return
    problem = standard(**CASES[message](value))
    found = faults(problem)
    assert found[message] == (MIDDLE, Status.FAULTY_DATA)
    assert not looks_sound(problem, False)


def test_an_l1_weight_that_is_linear_on_the_set_is_its_own_fault_and_not_that_of_q():
    for bad, message in ((torch.nan, "l1 holds NaN or Inf"), (-0.5, "l1 is negative")):
        problem = standard(l1=one_bad(ZEROS, vector(bad, 0.1)), feasible=Simplex())
        assert faults(problem) == {message: (MIDDLE, Status.FAULTY_DATA)}
        assert not looks_sound(problem, False)
        assert not looks_sound(problem, True)
    both = standard(q=one_bad(ZEROS, vector(torch.nan, 0.0)), l1=torch.full((3, 2), 0.1, dtype=D), feasible=Simplex())
    assert faults(both) == {"q holds NaN or Inf": (MIDDLE, Status.FAULTY_DATA)}


@pytest.mark.parametrize(
    ("feasible", "message"),
    [
        (Box(one_bad(ZEROS, vector(0.0, 1.0 + 1e-9)), 1.0), "the set is empty: lower is above upper"),
        (Box(one_bad(ZEROS, vector(INF, 0.0)), INF), "the set is empty: lower is inf or upper is -inf"),
        (Box(-INF, one_bad(ZEROS, vector(-INF, 0.0))), "the set is empty: lower is inf or upper is -inf"),
        (Budget(vector(0.0, -1e-9, 1.0)), "the set is empty: total is below the sum of lower"),
        (FeasibleSet(-1.0, 1.0, vector(-2.0, -2.1, 2.0)), "the set is empty: total is below the sum of lower"),
        (FeasibleSet(-1.0, 1.0, vector(-2.0, 2.1, 2.0)), "the set is empty: total is above the sum of upper"),
    ],
    ids=str,
)
def test_an_empty_set_is_infeasible_from_its_edge_on(feasible, message):
    problem = standard(feasible=feasible)
    assert faults(problem) == {message: (MIDDLE, Status.INFEASIBLE)}
    assert not looks_sound(problem, False)


@pytest.mark.parametrize(
    "feasible",
    [
        Box(vector(0.5, 1.0), vector(0.5, 1.0)),
        Box(-INF, INF),
        FeasibleSet(-1.0, 1.0, vector(-2.0, 0.0, 2.0)),
        FeasibleSet(-1.0, 1.0, vector(-2.0, 0.0, 50.0), equality=False),
        Budget(vector(0.0, 1.0, 2.0)),
        SumTo(vector(0.0, -1e30, 1e30)),
        Simplex(mask=torch.tensor([[True, False], [True, True], [False, True]])),
    ],
    ids=str,
)
def test_what_is_sound_is_sound_to_both_looks(feasible):
    for l1 in (0.0, torch.full((3, 2), 0.1, dtype=D)):
        problem = standard(feasible=feasible, l1=l1)
        assert faults(problem) == {}
        assert looks_sound(problem, False)
        assert looks_sound(problem, feasible.is_fixed)


def test_a_total_is_out_of_reach_beyond_rounding_only():
    eps = torch.finfo(D).eps
    for factor, out in ((10.0, False), (1e3, True)):
        above = standard(feasible=FeasibleSet(0.0, 0.5, vector(1.0, 1.0 + factor * eps, 1.0)))
        assert out_of_reach(above)[1].tolist() == [False, out, False]
        assert not out_of_reach(above)[0].any()
        below = standard(feasible=FeasibleSet(0.5, 1.0, vector(1.0, 1.0 - factor * eps, 1.0)))
        assert out_of_reach(below)[0].tolist() == [False, out, False]
        assert not out_of_reach(below)[1].any()
    budget = standard(feasible=FeasibleSet(0.0, 0.5, vector(1.0, 9.0, 1.0), equality=False))
    assert not out_of_reach(budget)[1].any()  # need not be spent


def test_nobody_there_is_infeasible_unless_nothing_is_to_be_shared():
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    nobody = "the set is empty: mask leaves no coordinate"
    assert faults(standard(feasible=Simplex(mask=mask)))[nobody] == (MIDDLE, Status.INFEASIBLE)
    assert nobody not in faults(standard(feasible=Budget(1.0, mask=mask)))
    assert faults(standard(feasible=Free(mask=mask))) == {}


def said(messages, batch_shape, on_failure="warn"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report(messages, batch_shape, on_failure, ValueError)
    return [str(w.message) for w in caught]


def test_a_report_names_the_first_index_and_counts():
    items = torch.tensor([False, False, True, False, True, False])
    none = torch.zeros(6, dtype=torch.bool)
    assert said([("bad", items)], [6]) == ["bad at batch index 2 (2 of 6)."]
    assert said([("bad", items)], [2, 3]) == ["bad at batch index (0, 2) (2 of 6)."]
    assert said([("bad", items)], [3, 2, 1]) == ["bad at batch index (1, 0, 0) (2 of 6)."]
    assert said([("bad", items[2:3])], []) == ["bad (1 of 1)."]
    assert said([("bad", items)], [2, 5]) == ["bad at batch index 2 (2 of 6)."]  # a batch that vmap has widened
    assert said([("bad", items), ("fine", none), ("worse", ~items)], [6]) == [
        "bad at batch index 2 (2 of 6); worse at batch index 0 (4 of 6)."
    ]
    assert said([("fine", none)], [6]) == []
    assert said([], [6]) == []
    assert said([("bad", items)], [6], "ignore") == []
    with pytest.raises(ValueError, match=r"^bad at batch index 2 \(2 of 6\)\.$"):
        said([("bad", items)], [6], "raise")
    said([("fine", none)], [6], "raise")


def test_failures_are_reported_by_their_reason():
    status = torch.tensor([0, 1, 3, 4, 1, 0])
    residual = vector(0.0, 1e-3, 1.0, 0.0, 2e-2, 0.0)
    with pytest.raises(ConvergenceError) as caught:
        report_failures(status, residual, 1e-9, [6], "raise")
    assert str(caught.value) == (
        "not solved to tol=1e-09, residual up to 2.0e-02 at batch index 1 (2 of 6); "
        f"{Status.UNBOUNDED.message} at batch index 2 (1 of 6); "
        f"{Status.NOT_MONOTONE.message} at batch index 3 (1 of 6)."
    )
    report_failures(status, residual, 1e-9, [6], "ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report_failures(torch.zeros(6, dtype=torch.long), residual, 1e-9, [6], "warn")
    with pytest.warns(UserWarning, match=r"^not solved to tol=0.001, residual up to 1\.0e-03 at batch index 0"):
        report_failures(status[1:2], residual[1:2], 1e-3, [1], "warn")


def test_a_gradient_is_reported_above_its_limit():
    residual = vector(0.0, SINGULAR, 2 * SINGULAR, 0.5)
    with pytest.warns(UserWarning, match=r"residual up to 5\.0e-01 at batch index 2 \(2 of 4\)\.$"):
        report_gradient(residual, [4], "warn")
    with pytest.raises(ConvergenceError, match=r"^the weights are not differentiable: .* least norm"):
        report_gradient(residual, [4], "raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report_gradient(residual, [4], "ignore")
        report_gradient(residual[:2], [2], "warn")
        report_gradient(residual[:2], [2], "raise")
