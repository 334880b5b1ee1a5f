"""The fuzzer's oracles know right from wrong: closed forms, finite differences of an enumeration, planted faults."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.fuzz.adjoint import NAMES, adjoint
from benchmarks.fuzz.ask import Answer
from benchmarks.fuzz.batches import Batch, Truth, exact
from benchmarks.fuzz.certificate import certify
from benchmarks.fuzz.checks import judge
from benchmarks.fuzz.enumeration import enumerate_solution
from benchmarks.fuzz.families import draw, planted_force
from benchmarks.fuzz.findings import Findings
from benchmarks.fuzz.linear import inverse
from benchmarks.fuzz.matrices import gram
from benchmarks.fuzz.pieces import enumerate_pieces, locate
from benchmarks.fuzz.sets import SETS, draw_set
from solvers import Status

INF = float("inf")
WIDER = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps
pytestmark = pytest.mark.skipif(not WIDER, reason="long double is no wider than float64 here")


def stated(M, q, *, lower=-INF, upper=INF, l1=0.0, total=None, equality=True, truth=Truth.SOLVABLE, reach=INF, **more):
    """A batch of problems in units of 1, float64."""
    M, q = torch.tensor(M, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
    B, L = q.shape
    ones = np.ones((B, L))
    fields = {
        "mask": None,
        "least": np.zeros(B),
        "weight_unit": ones,
        "force_unit": ones,
        "cotangent": torch.ones(B, L),
    }
    fields |= {"family": "", "set_name": "", "lower": lower, "upper": upper, "l1": l1, "total": total}
    fields |= {"equality": equality, "truth": np.full(B, truth), "reach": np.full(B, reach)}
    return Batch(M=M, q=q, **(fields | more))


def violation(batch, w):
    """Of weights and forces, relative to their sizes, of the only item."""
    found = certify(exact(batch), np.array([w], np.longdouble), 1e-12)
    return float(found.weight_violation[0]), float(found.force_violation[0])


EYE = [[[1.0, 0.0], [0.0, 1.0]]]


@pytest.mark.parametrize(
    ("batch", "right", "wrong"),
    [
        (stated(EYE, [[-0.6, -0.4]], lower=0.0, total=1.0), [0.6, 0.4], [0.6 + 1e-6, 0.4 - 1e-6]),
        (stated(EYE, [[-5.0, 0.0]], lower=0.0, total=1.0), [1.0, 0.0], [0.9, 0.1]),
        (stated(EYE, [[-5.0, 0.0]], lower=0.0, upper=0.75, total=1.0), [0.75, 0.25], [0.5, 0.5]),
        (stated(EYE, [[-5.0, 0.3]], lower=-1.0, upper=1.0, l1=0.5), [1.0, 0.0], [1.0, 1e-6]),
        (stated(EYE, [[-0.2, -0.3]], lower=0.0, total=1.0, equality=False), [0.2, 0.3], [0.4, 0.6]),
        (stated(EYE, [[-2.0, -3.0]], lower=0.0, total=1.0, equality=False), [0.0, 1.0], [0.5, 0.5]),
        (stated(EYE, [[-2.0, 3.0]], total=1.0), [3.0, -2.0], [1.0, 0.0]),
    ],
)
def test_the_certificate_is_zero_at_the_solution_and_nowhere_else(batch, right, wrong):
    assert max(violation(batch, right)) < 1e-12  # rounding of the data to float64, a few times 1e-16
    assert max(violation(batch, wrong)) > 1e-7


def test_a_bound_is_violated_by_what_it_is_relative_to_the_weights():
    batch = stated(EYE, [[-1.0, -1.0]], lower=0.0, upper=1e-3)
    off, _ = violation(batch, [1.1e-3, 1e-3])
    assert off == pytest.approx(1e-4, rel=1e-6)  # 1e-4 beyond, where weights of about q/M = 1 are natural


def test_an_answer_that_has_run_away_is_not_measured_by_its_own_size():
    never = stated([[[0.0, 0.0], [0.0, 1.0]]], [[-1.0, 0.0]], lower=0.0, truth=Truth.UNBOUNDED, reach=1e3)
    assert violation(never, [1e16, 0.0])[1] > 0.1


def test_a_common_force_hides_no_violation_where_the_sum_is_fixed():
    batch = stated(EYE, [[4096.0 - 0.6, 4096.0 - 0.4]], lower=0.0, total=1.0)
    assert violation(batch, [0.5, 0.5])[1] > 0.1 / 1.1  # off by 0.1 where forces are of size 0.1 to 1, not 4096


def test_units_change_no_violation():
    batch = stated(EYE, [[-5.0, 0.0]], lower=0.0, total=1.0)
    other = replace(
        batch,
        M=batch.M * 2.0**40,
        q=batch.q * 2.0**20,
        total=2.0**-20,
        weight_unit=np.full((1, 2), 2.0**-20),
        force_unit=np.full((1, 2), 2.0**20),
    )
    assert violation(other, [0.9, 0.1]) == violation(batch, [0.9, 0.1])


def moved(problem, b, name, way):
    """The weights of item ``b`` with a datum moved, by enumeration."""
    value = getattr(problem, name).copy()
    value[b] = value[b] + way
    return enumerate_solution(replace(problem, **{name: value}), b)[0]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("set_name", [name for name in SETS if name != "Sum at a vertex"])
def test_the_adjoint_is_what_finite_differences_of_an_enumeration_say(set_name, size):
    """Central differences of a piecewise smooth map, away from its kinks: off by rounding / step and step²."""
    step, compared = 1e-6, 0
    for seed in range(100):
        if compared >= 60:
            break
        batch = draw("game", np.random.default_rng(seed), torch.float64, 8, set_name=set_name, size=size)
        batch = batch.select(np.flatnonzero(batch.truth == Truth.SOLVABLE))
        problem = exact(batch)
        w = np.array([enumerate_solution(problem, b)[0] for b in range(batch.count)], np.longdouble)
        position = locate(problem, w, certify(problem, w, 1e-12), 1e-4)
        pieces = enumerate_pieces(problem, position)
        found = adjoint(problem, w, pieces)
        clear = ~position.open.any(1) & ~position.tight_open & (abs(w).max(1) < 10) & (abs(problem.q).max(1) < 10)
        for k in np.flatnonzero(clear[pieces.item] & (found.condition < 1e3) & (pieces.released < 0)):
            b = pieces.item[k]
            exists = problem.exists[b].astype(float)
            ways = {"q": exists, "l1": exists * (problem.l1[b] > 0), "M": np.outer(exists, exists)}
            ways |= {"lower": pieces.at_lower[k] * exists, "upper": pieces.at_upper[k] * exists}
            ways |= {} if problem.total is None else {"total": np.ones(())}
            for name, way in ways.items():
                way = way * np.random.default_rng(seed).normal(size=way.shape)
                if name in ("lower", "upper"):
                    bound = getattr(problem, name)[b]  # a bound of 0 with an L1 weight is a kink of its own
                    way = way * (problem.lower[b] < problem.upper[b]) * ((bound != 0) | (problem.l1[b] == 0))
                there, back = (moved(problem, b, name, sign * step * way) for sign in (1, -1))
                right = float(((there - back) * problem.cotangent[b]).sum() / (2 * step))
                got = float((found.gradients[name][k] * way).sum())
                allowed = 1e-5 * (abs(right) + found.sizes[name][k]) + 1e-8
                assert abs(got - right) <= allowed, (name, seed, b)
                compared += 1
    assert compared >= 60


def test_the_inverse_is_one_and_a_singular_matrix_is_said_to_be():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(50, 5, 5)).astype(np.longdouble)
    A[1, :, 0] = A[1, :, 1]
    found, condition = inverse(A)
    assert condition[1] > 1e16
    regular = np.delete(np.arange(50), 1)
    off = abs((A[:, :, :, None] * found[:, None]).sum(2) - np.eye(5)).max((1, 2))
    assert (off[regular] < 1e-16 * condition[regular]).all()  # extended precision has 1e-19


def answered(batch, problem, w, pieces, **changed):
    """What a perfect solver would say, but for what is changed."""
    right = adjoint(problem, w, pieces).gradients
    gradients = {name: right[name].astype(float) for name in NAMES if name in batch.leaves()}
    says = {"weights": w.astype(float), "status": np.full(batch.count, int(Status.SOLVED)), "gradients": gradients}
    return Answer(**(says | changed))


def kinds(batch, answer):
    findings = Findings(batch)
    judge(batch, answer, findings)
    return {failure.kind for failure in findings.failures}


def simple():
    batch = stated(EYE, [[-0.6, -0.4]], lower=0.0, total=1.0, cotangent=torch.tensor([[1.0, 3.0]], dtype=torch.float64))
    problem, w = exact(batch), np.array([[0.6, 0.4]], np.longdouble)
    return batch, problem, w, enumerate_pieces(problem, locate(problem, w, certify(problem, w, 1e-12)))


def test_a_perfect_answer_passes():
    batch, problem, w, pieces = simple()
    assert kinds(batch, answered(batch, problem, w, pieces)) == set()


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"weights": np.array([[0.7, 0.3]])}, "weights: wrong but called solved"),
        ({"weights": np.array([[np.nan, 0.3]])}, "weights: NaN of an item that is not faulty"),
        ({"gradients": {"M": np.zeros((1, 2, 2)), "q": np.zeros((1, 2))}}, "gradient: wrong"),
        ({"gradients": {"M": np.zeros((1, 2, 2)), "q": np.array([[1.0, np.nan]])}}, "gradient: q not finite"),
        ({"status": np.array([int(Status.UNBOUNDED)])}, "status: SOLVABLE called UNBOUNDED"),
        ({"status": np.array([int(Status.ITERATION_LIMIT)])}, "gradient: q of an unsolved item is not zero"),
    ],
)
def test_what_is_wrong_is_found(changed, kind):
    batch, problem, w, pieces = simple()
    assert kind in kinds(batch, answered(batch, problem, w, pieces, **changed))


def test_at_a_tie_each_adjacent_piece_is_right_and_nothing_between_them():
    batch = stated(EYE, [[-1.0, 0.0]], lower=0.0, cotangent=torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    answer = {"weights": np.array([[1.0, 0.0]]), "status": np.array([0])}
    for second, right in ((0.0, True), (-1.0, True), (-0.5, False)):
        y = np.array([[-1.0, second]])
        gradients = {"q": y, "M": y[:, :, None] * answer["weights"][:, None, :]}
        assert (kinds(batch, Answer(gradients=gradients, **answer)) == set()) == right


def test_a_singular_gradient_that_nobody_is_warned_of_is_found():
    batch = stated([[[1.0, 1.0], [1.0, 1.0]]], [[-1.0, -1.0]], cotangent=torch.tensor([[1.0, -1.0]]).double())
    gradients = {"q": np.zeros((1, 2)), "M": np.zeros((1, 2, 2))}
    answer = Answer(np.array([[0.5, 0.5]]), np.array([0]), gradients)
    assert kinds(batch, answer) == {"gradient: singular and silent"}


@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("set_name", SETS)
def test_planted_solutions_are_solutions(set_name, coarse):
    """On coarse data exactly; else up to rounding of the planted force, a few times 1e-16 of it."""
    rng = np.random.default_rng(0)
    exists = rng.random((50, 5)) < 0.8
    exists[:, 0] = True
    C = draw_set(rng, set_name, exists, coarse)
    M, _ = gram(rng, 50, 5, 3, coarse)
    l1 = 0.25 * rng.integers(0, 3, (50, 5))
    q = planted_force(rng, M, C, l1, coarse)
    tensors = {name: torch.from_numpy(value) for name, value in (("lower", C.lower), ("upper", C.upper), ("l1", l1))}
    total = None if C.total is None else torch.from_numpy(C.total)
    batch = stated(M, q, total=total, equality=C.equality, mask=torch.from_numpy(exists), **tensors)
    found = certify(exact(batch), C.inside.astype(np.longdouble), 0.0 if coarse else 1e-14)
    assert found.weight_violation.max() <= (0.0 if coarse else 1e-14)
    assert found.force_violation.max() == 0.0  # beyond what rounding explains
