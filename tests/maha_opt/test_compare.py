"""The study: errors are what they say, nothing is hidden, and a crash stays where it happened."""

from dataclasses import asdict, replace
from itertools import islice

import pytest
import torch

import maha_opt.compare as study
import solvers.registry
from maha_opt.compare import Batch, compare, take
from maha_opt.contenders import Contender, expand
from maha_opt.validation.comparison import parse_contenders
from solvers import AffineVI, Box, FeasibleSet, Simplex, solve

COUNT, L = 40, 3
EXACT = ("pivot", "scipy", "projected_gradient")


def batch(kind="convex", seed=0, dtype=torch.float64, feasible=None, ridge=0.3):
    generator = torch.Generator().manual_seed(seed)
    Y = torch.randn(COUNT, L, 8, generator=generator, dtype=dtype)
    G = Y @ Y.mT / 8
    a = torch.randn(L, L, generator=generator, dtype=dtype)
    M = (G if kind == "convex" else (1 + 0.3 * (a - a.mT)) * G) + ridge * torch.eye(L, dtype=dtype)
    q = -torch.rand(COUNT, L, generator=generator, dtype=dtype)
    return Batch(kind, seed, AffineVI(M, q, feasible or (Simplex() if kind == "convex" else Box())))


def contenders(*texts, steps=()):
    return expand([Contender.parse(text) for text in texts], steps)


def measure(batches, *texts, steps=(), **options):
    cells = list(compare(batches, contenders(*texts, steps=steps), covered=12, repeats=1, **options))
    return {(cell.kind, cell.solver, cell.steps): cell for cell in cells}


@pytest.fixture(scope="module")
def cells():
    texts = (*EXACT, "best_response", "mirror_descent", "mean")
    return measure([batch("convex"), batch("nash")], *texts, steps=[5, 20, 80])


@pytest.fixture
def exploding(monkeypatch):
    """A solver that crashes."""

    class Exploding:
        gradients, to_tolerance = ("implicit",), True

        def check_set(self, feasible):
            pass

        def __call__(self, problem, tol, max_iter):
            raise ZeroDivisionError("the fuse was lit\nlong ago")

    monkeypatch.setitem(solvers.registry._SOLVERS, "exploding", Exploding)


@pytest.mark.parametrize("kind", ["convex", "nash"])
@pytest.mark.parametrize("solver", EXACT)
def test_exact_solvers_agree_with_the_reference(cells, kind, solver):
    cell = cells[kind, solver, None]
    assert cell.status == "ok"
    assert cell.error_weights_mean <= cell.error_weights_max <= 1e-7
    assert cell.covered == 12
    assert cell.residual < 1e-7
    assert cell.exploitability < 1e-8
    assert solver == "scipy" or cell.unconverged == 0  # SLSQP stops short of 1e-9
    if solver == "scipy":
        assert cell.error_gradient_q is None
        assert cell.error_gradient_M is None
    else:
        assert max(cell.error_gradient_q, cell.error_gradient_M) <= 1e-6


@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        ("convex", "projected_gradient"),
        ("convex", "best_response"),
        ("convex", "mirror_descent"),
        ("nash", "projected_gradient"),
        ("nash", "best_response"),
    ],
)
def test_unrolled_errors_fall_with_the_number_of_steps(cells, kind, solver):
    rows = [cells[kind, solver, steps] for steps in (5, 20, 80)]
    assert {row.gradient for row in rows} == {"unrolled"}
    assert [row.iterations for row in rows] == [5, 20, 80]
    for column in ("error_weights_max", "error_weights_mean", "error_gradient_q", "error_gradient_M"):
        errors = [getattr(row, column) for row in rows]
        assert errors == sorted(errors, reverse=True), column
        assert errors[-1] < 0.5 * errors[0], column


def test_a_heuristic_is_far_off_and_has_no_gradient_worth_the_name(cells):
    mean = cells["convex", "mean", None]
    assert mean.error_weights_max > 0.1
    assert mean.error_gradient_q == pytest.approx(1.0)
    assert mean.exploitability > 1e-3


def test_errors_are_those_of_the_definition(cells):
    problem = batch("convex").problem
    part = AffineVI(problem.M[:12], problem.q[:12])
    g = torch.randn(problem.q.shape, generator=torch.Generator().manual_seed(0)).double()[:12]

    def differentiate(**options):
        M, q = part.M.clone().requires_grad_(), part.q.clone().requires_grad_()
        w = solve(replace(part, M=M, q=q), on_failure="ignore", **options).weights
        return w.detach(), *torch.autograd.grad((w * g).sum(), (q, M))

    exact = differentiate(solver="cvxpylayers")
    near = differentiate(solver="projected_gradient", gradient="unrolled", unroll=5)
    cell = cells["convex", "projected_gradient", 5]
    worst = (near[0] - exact[0]).abs().amax(-1)
    assert cell.error_weights_max == pytest.approx(float(worst.max()))
    assert cell.error_weights_mean == pytest.approx(float(worst.mean()))
    assert cell.error_gradient_q == pytest.approx(float((near[1] - exact[1]).norm() / exact[1].norm()), rel=1e-6)
    assert cell.error_gradient_M == pytest.approx(float((near[2] - exact[2]).norm() / exact[2].norm()), rel=1e-6)


def test_times_and_speed_ups_fit_together(cells):
    for kind in ("convex", "nash"):
        reference = cells[kind, "cvxpylayers", None]
        assert reference.speed_up == 1.0
        for key, cell in cells.items():
            if key[0] == kind and cell.status == "ok":
                assert cell.speed_up == pytest.approx(reference.seconds_per_problem / cell.seconds_per_problem)
                assert cell.problems == (12 if cell.solver in ("cvxpylayers", "scipy") else COUNT)


def test_a_solver_that_cannot_take_the_set_is_listed_with_the_reason(cells):
    for steps in (None, 5, 20, 80):
        cell = cells["nash", "mirror_descent", steps]
        assert cell.status == "not run"
        assert "Simplex" in cell.reason
        assert cell.error_weights_max is None
    assert "total" in cells["nash", "mean", None].reason


def test_a_crash_is_recorded_and_does_not_stop_the_others(exploding):
    cells = measure([batch()], "exploding", "pivot")
    assert list(cells) == [("convex", name, None) for name in ("cvxpylayers", "exploding", "pivot")]
    crashed = cells["convex", "exploding", None]
    assert crashed.status == "failed"
    assert crashed.reason == "ZeroDivisionError: the fuse was lit"
    assert "long ago" in crashed.traceback
    assert cells["convex", "pivot", None].error_weights_max <= 1e-7


def test_without_a_reference_there_are_times_and_certificates_but_no_errors(monkeypatch):
    def refuse(*args):
        raise ImportError("No module named 'cvxpylayers'")

    monkeypatch.setattr("solvers.conic._layer", refuse)
    cells = measure([batch()], "pivot")
    reference, pivot = cells["convex", "cvxpylayers", None], cells["convex", "pivot", None]
    assert reference.status == "failed"
    assert "cvxpylayers" in reference.reason
    assert pivot.status == "ok"
    assert (pivot.error_weights_max, pivot.error_gradient_q, pivot.speed_up, pivot.covered) == (None, None, None, 0)
    assert pivot.seconds_per_problem > 0


def test_answers_of_the_reference_that_miss_their_certificate_are_not_used(monkeypatch):
    monkeypatch.setattr(study, "REFERENCE_TOLERANCE", 1e-30)
    cells = measure([batch()], "pivot")
    reference, pivot = cells["convex", "cvxpylayers", None], cells["convex", "pivot", None]
    assert reference.problems == 12
    assert pivot.covered == reference.covered < 12
    assert reference.unconverged == 12 - reference.covered


def test_gradients_are_not_compared_at_a_kink():
    q = -torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.3, 0.1], [0.6, 0.4, -0.2]], dtype=torch.float64)  # the first is a tie
    cell = measure([Batch("convex", 0, AffineVI(torch.eye(3, dtype=torch.float64), q))], "pivot")[
        "convex", "pivot", None
    ]
    assert (cell.covered, cell.smooth) == (3, 2)
    assert cell.error_gradient_q < 1e-6


def test_no_gradient_at_all_is_no_error():
    one = AffineVI(torch.rand(4, 1, 1, dtype=torch.float64) + 1, torch.rand(4, 1, dtype=torch.float64))
    cell = measure([Batch("convex", 0, one)], "pivot")["convex", "pivot", None]
    assert cell.error_gradient_q < 1e-6
    assert cell.error_gradient_M < 1e-6


def test_single_precision_is_judged_by_a_reference_in_double_precision():
    cell = measure([batch(dtype=torch.float32)], "pivot")["convex", "pivot", None]
    assert 1e-9 < cell.error_weights_max < 1e-5
    assert cell.error_gradient_q < 1e-4


def test_cells_come_one_at_a_time(exploding):
    drawn = []

    def batches():
        for seed in range(100):
            drawn.append(seed)
            yield batch(seed=seed)

    cells = list(islice(compare(batches(), contenders("exploding"), covered=4, repeats=1), 3))
    assert [cell.seed for cell in cells] == [0, 0, 1]
    assert drawn == [0, 1]


def test_iterations_are_bounded_where_they_are_asked_to_be():
    cells = measure([batch(ridge=1e-4)], "projected_gradient", "pivot", max_iter=16)
    assert cells["convex", "projected_gradient", None].iterations <= 16
    assert cells["convex", "projected_gradient", None].unconverged > 0
    assert cells["convex", "pivot", None].unconverged == 0


def test_the_same_seed_gives_the_same_numbers():
    timings = ("seconds_per_problem", "speed_up", "repeats")
    first, second = (
        [{k: v for k, v in asdict(cell).items() if k not in timings} for cell in measure([batch()], "pivot").values()]
        for _ in range(2)
    )
    assert first == second


def test_take_selects_every_tensor_of_a_problem():
    p = batch("nash").problem
    shared = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    rows = torch.rand(COUNT, L, dtype=torch.float64)
    mask, total = rows > 0.1, rows.sum(-1) * 0 + 0.7
    feasible = FeasibleSet(lower=-shared, upper=rows + 1, total=total, equality=False, mask=mask)
    whole = AffineVI(p.M[0], p.q, feasible, l1=shared)
    items = torch.tensor([3, 1, 7])
    part = take(whole, items, torch.float32)
    assert part.batch_shape == (3,)
    assert part.q.dtype == part.feasible.upper.dtype == part.l1.dtype == torch.float32
    expected = solve(whole).weights[items]
    torch.testing.assert_close(solve(part).weights.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "solver", "gradient", "steps", "label"),
    [
        ("pivot", "pivot", "implicit", None, "pivot"),
        ("best_response:sweep=gauss_seidel", "best_response", "implicit", None, "best_response:sweep=gauss_seidel"),
        (" mirror_descent : unroll=7:gradient=unrolled", "mirror_descent", "unrolled", 7, "mirror_descent"),
        ("best_response:damping=0.5", "best_response", "implicit", None, "best_response:damping=0.5"),
        ("projected_gradient:gradient=one_step", "projected_gradient", "one_step", None,
         "projected_gradient:gradient=one_step"),
    ],
)  # fmt: skip
def test_contenders_are_read_from_text(text, solver, gradient, steps, label):
    contender = Contender.parse(text)
    assert (contender.solver, contender.gradient, contender.steps, contender.label) == (solver, gradient, steps, label)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pivott", "'pivott'"),
        ("pivot:fast=1", "fast"),
        ("pivot:fast", "has no '='"),
        ("pivot:gradient=unrolled", "gradient='unrolled'"),
        ("best_response:damping=7", "damping"),
    ],
)
def test_a_contender_that_cannot_be_says_why(text, words):
    with pytest.raises(ValueError, match=words):
        Contender.parse(text)


def test_only_iterative_solvers_are_unrolled_and_nobody_comes_twice():
    texts = ("pivot", "mean", "best_response", "best_response", "projected_gradient:unroll=3")
    expanded = [(contender.label, contender.steps) for contender in contenders(*texts, steps=[2, 4])]
    assert expanded == [
        ("pivot", None),
        ("mean", None),
        ("best_response", None),
        ("best_response", 2),
        ("best_response", 4),
        ("projected_gradient", 3),
    ]


def test_a_one_step_gradient_takes_part_under_its_own_name():
    cell = measure([batch()], "projected_gradient:gradient=one_step")[
        "convex", "projected_gradient:gradient=one_step", None
    ]
    assert cell.status == "ok"
    assert cell.gradient == "one_step"
    assert 0 < cell.error_gradient_q < 1


@pytest.mark.parametrize(
    "text",
    [
        "pivot",
        "projected_gradient:unroll=7:gradient=unrolled",
        "best_response:damping=0.1:sweep=gauss_seidel",
        "softmax:temperature=1e-05",
    ],
)
def test_a_contender_is_spelled_as_it_is_read(text):
    assert Contender.parse(text).spelling == text
    assert Contender.parse(Contender.parse(text).spelling) == Contender.parse(text)


def test_a_number_of_steps_and_a_gradient_that_stand_with_the_flag_hold():
    every = ("implicit", "unrolled", "one_step")
    own = parse_contenders(["projected_gradient:unroll=7"], every, [5, 20, None])
    assert [(contender.gradient, contender.steps) for contender in own] == [(gradient, 7) for gradient in every]
    own = parse_contenders(["projected_gradient:gradient=one_step"], every, [5, None])
    assert [(contender.gradient, contender.steps) for contender in own] == [("one_step", 5), ("one_step", None)]
    assert dict(own[0].options) == {"unroll": 5}
