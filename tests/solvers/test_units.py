"""Units: the same problem measured otherwise has the same answer, and gradients in the units that follow.

Factors that are powers of two change no digit, so there everything is equal to the last bit, iterations too. Any other
factor rounds the data once, and the answer moves by that rounding times the condition of the problem.
"""

from dataclasses import replace

import pytest
import torch
from problems import SETS, away_from_ties, random_case

from solvers import AffineVI, solve

SLOPES = ("M", "q", "l1")
WEIGHTS = ("low", "high", "floor", "cap", "budget", "sum", "inner")
WITHOUT_SUM = tuple(name for name in SETS if name.startswith(("Box", "NonNegative", "Free")))
FIXED_SUM = tuple(name for name in SETS if name.startswith(("Simplex", "Capped", "SumTo", "signed sum")))
OF_NUMBERS = (
    "Simplex",
    "Simplex masked",
    "CappedSimplex",
    "CappedSimplex tensor",
    "CappedSimplex masked",
    "Box",
    "Budget",
)
IN_OTHER_WEIGHTS = tuple(name for name in SETS if name not in OF_NUMBERS)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
every_set = pytest.mark.parametrize("name", SETS)
DEFAULT = {"solver": "pivot"}
EXACT = (DEFAULT, {"solver": "best_response"}, {"solver": "projected_gradient"})
EXACT += ({"solver": "best_response", "gradient": "one_step"}, {"solver": "projected_gradient", "gradient": "one_step"})
EXACT += ({"solver": "best_response", "gradient": "unrolled"},)


def answer(case, cotangent, **options):
    """Solution and the gradients of ``cotangent · w``, zero where there is none."""
    case = case.leaves()
    solution = solve(case.problem(), on_failure="ignore", **options)
    found = torch.autograd.grad((solution.weights * cotangent).sum(), list(case.data.values()), allow_unused=True)
    return solution, {
        k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(case.data.items(), found, strict=True)
    }


def cotangent_of(case, seed=0):
    q = case.data["q"]
    return torch.randn(q.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(q.dtype)


def times(case, factors):
    return replace(case, data={k: v * factors.get(k, 1.0) for k, v in case.data.items()})


def in_slopes(case, t):
    """In another unit of slopes, and what that makes of weights and gradients."""
    return times(case, dict.fromkeys(SLOPES, t)), 1.0, {**dict.fromkeys(SLOPES, 1 / t), **dict.fromkeys(WEIGHTS, 1.0)}


def in_weights(case, c):
    """In another unit of weights: ``w → cw``, slopes with them."""
    moved = times(case, {"q": c, "l1": c, **dict.fromkeys(WEIGHTS, c)})
    return moved, c, {"M": c, "q": 1.0, "l1": 1.0, **dict.fromkeys(WEIGHTS, 1.0)}


def hold_exactly(case, moved, of_weights, of_gradients, options):
    """Weights, residuals and iterations to the last bit; gradients up to roundings, since they take roots of units."""
    cotangent = cotangent_of(case)
    solution, expected = answer(case, cotangent, **options)
    other, found = answer(moved, cotangent, **options)
    assert torch.equal(other.iterations, solution.iterations)
    assert torch.equal(other.weights, of_weights * solution.weights)
    assert torch.equal(other.residual, solution.residual)
    assert torch.equal(other.status, solution.status)
    rounding = (1e-12 if solution.weights.dtype == torch.float64 else 1e-6) * expected["q"].abs().max()
    for of, g in found.items():
        atol = float(rounding * max(1.0, float(expected[of].abs().max())))
        torch.testing.assert_close(g / of_gradients[of], expected[of], rtol=0, atol=atol, msg=of)


@every_set
@PRECISIONS
@pytest.mark.parametrize("exponents", [(-40, 8), (-7,)], ids=["even", "odd"])
def test_powers_of_two_in_the_slopes_change_no_bit(name, dtype, exponents):
    for exponent in exponents:
        for kind in ("plain", "game", "rank deficient"):
            case = random_case(name, 4, 4, seed=1, kind=kind, dtype=dtype)
            hold_exactly(case, *in_slopes(case, 2.0**exponent), DEFAULT)


@pytest.mark.parametrize("name", IN_OTHER_WEIGHTS)
@PRECISIONS
def test_powers_of_two_in_the_weights_change_no_bit(name, dtype):
    for exponent in (-30, 9):
        for kind in ("plain", "game", "rank deficient"):
            case = random_case(name, 4, 4, seed=2, kind=kind, dtype=dtype)
            hold_exactly(case, *in_weights(case, 2.0**exponent), DEFAULT)


@pytest.mark.parametrize("options", EXACT, ids=str)
@PRECISIONS
def test_powers_of_two_change_no_bit_in_any_solver_and_gradient(options, dtype):
    for name in ("Simplex masked", "Box signed", "signed budget"):
        case = away_from_ties(name, 3, 2, seed=3, margin=0.02)
        case = replace(case, data={k: v.to(dtype) for k, v in case.data.items()})
        for exponent in (-22, 20):
            hold_exactly(case, *in_slopes(case, 2.0**exponent), options)
            if name in IN_OTHER_WEIGHTS:
                hold_exactly(case, *in_weights(case, 2.0**exponent), options)


def hold_closely(case, moved, of_weights, of_gradients, rounding, options=DEFAULT):
    """The data are rounded once when they are multiplied, by ``rounding``, which the condition multiplies."""
    cotangent = cotangent_of(case)
    solution, expected = answer(case, cotangent, **options)
    other, found = answer(moved, cotangent, **options)
    assert solution.converged.all()
    assert other.converged.all()
    torch.testing.assert_close(other.weights / of_weights, solution.weights, rtol=0, atol=rounding)
    for of, g in found.items():
        scale = float(expected[of].abs().max())
        torch.testing.assert_close(g / of_gradients[of], expected[of], rtol=0, atol=rounding * max(scale, 1e-3), msg=of)


@every_set
@PRECISIONS
def test_any_unit_of_slopes_gives_the_same_weights_and_its_gradients(name, dtype):
    case = away_from_ties(name, 4, 4, seed=4, kind="game", margin=0.02)
    case = replace(case, data={k: v.to(dtype) for k, v in case.data.items()})
    for t in (1e-12, 1e-3, 1e6, 1e12):
        # condition 1e3, roundings of 1e-16 and 6e-8
        hold_closely(case, *in_slopes(case, t), rounding=1e4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", IN_OTHER_WEIGHTS)
@PRECISIONS
def test_any_unit_of_weights_gives_the_same_answer(name, dtype):
    case = away_from_ties(name, 4, 4, seed=5, kind="game", margin=0.02)
    case = replace(case, data={k: v.to(dtype) for k, v in case.data.items()})
    for c in (1e-9, 1e-3, 1e3, 1e9):
        hold_closely(case, *in_weights(case, c), rounding=1e4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("options", EXACT, ids=str)
def test_any_unit_of_slopes_serves_every_solver_and_gradient(options):
    for name in ("Simplex", "Box signed", "signed budget"):
        case = away_from_ties(name, 3, 3, seed=6, margin=0.02)
        for t in (1e-9, 1e9):
            # to the tolerance of the iterations, 1e-9, times the condition
            hold_closely(case, *in_slopes(case, t), rounding=1e-6, options=options)


@pytest.mark.parametrize("name", WITHOUT_SUM)
@PRECISIONS
@pytest.mark.parametrize("solver", ["pivot", "best_response"])
def test_each_coordinate_may_have_a_unit_of_its_own_where_there_is_no_sum(name, dtype, solver):
    if name in ("Box",):
        pytest.skip("its bounds are numbers")
    case = away_from_ties(name, 4, 4, seed=7, margin=0.02)
    case = replace(case, data={k: v.to(dtype) for k, v in case.data.items()})
    D = torch.tensor([2.0**-12, 1.0, 2.0**9, 2.0**3], dtype=dtype)
    moved = replace(case, data={k: v * (D.unsqueeze(-1) * D if k == "M" else D if k in SLOPES else 1 / D)
                                for k, v in case.data.items()})  # fmt: skip
    gradient = {k: 1 / (D.unsqueeze(-1) * D) if k == "M" else 1 / D if k in SLOPES else D for k in case.data}
    cotangent = cotangent_of(case)
    solution, expected = answer(case, cotangent, solver=solver)
    other, found = answer(moved, cotangent * D, solver=solver)
    assert solution.converged.all()
    assert torch.equal(other.converged, solution.converged)
    # weights to the tolerance of an iteration, or roundings times the condition
    rounding = 1e4 * torch.finfo(dtype).eps if solver == "pivot" else 1e3 * float(solution.tolerance.max())
    torch.testing.assert_close(other.weights * D, solution.weights, rtol=0, atol=rounding)
    for of, g in found.items():
        scale = max(float(expected[of].abs().max()), 1e-3)
        torch.testing.assert_close(g / gradient[of], expected[of], rtol=0, atol=rounding * scale, msg=of)


@pytest.mark.parametrize("name", FIXED_SUM)
@PRECISIONS
def test_what_all_coordinates_have_in_common_changes_nothing_on_a_fixed_sum(name, dtype):
    case = away_from_ties(name, 4, 4, seed=8, kind="game", margin=0.05)
    case = replace(case, data={k: v.to(dtype) for k, v in case.data.items()})
    total = case.problem().feasible.total
    total = torch.as_tensor(total, dtype=dtype).expand(4).unsqueeze(-1)
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64).to(dtype)
    cotangent = cotangent_of(case)
    solution, expected = answer(case, cotangent)
    for shifted, size in (
        ({"q": case.data["q"] + 64.0}, 64.0),
        ({"q": case.data["q"] + 4096.0}, 4096.0),
        ({"M": case.data["M"] + a.unsqueeze(-1), "q": case.data["q"] - total * a}, 1.0),  # M + a1ᵀ
    ):
        other, found = answer(replace(case, data=case.data | shifted), cotangent)
        rounding = 1e4 * size * torch.finfo(dtype).eps  # of q itself, once it is shifted, times the condition
        assert other.converged.all()
        torch.testing.assert_close(other.weights, solution.weights, rtol=0, atol=rounding)
        for of in set(found) - (set() if "M" not in shifted else {"M", "sum", "inner", "cap", "low", "high"}):
            scale = max(float(expected[of].abs().max()), 1e-3)
            torch.testing.assert_close(found[of], expected[of], rtol=0, atol=rounding * scale, msg=of)


@every_set
@PRECISIONS
def test_the_order_of_the_coordinates_is_theirs(name, dtype):
    case = away_from_ties(name, 5, 4, seed=9, kind="game", margin=0.02)
    case = replace(case, data={k: v.to(dtype) for k, v in case.data.items()})
    if name == "Box half open":
        pytest.skip("which bounds are infinite depends on the place")
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {k: v[..., order, :][..., order] if k == "M" else v[..., order] if v.ndim > 1 else v
             for k, v in case.data.items()}  # fmt: skip
    mask = None if case.mask is None else case.mask[..., order]
    cotangent = cotangent_of(case)
    solution, expected = answer(case, cotangent)
    other, found = answer(replace(case, data=moved, mask=mask), cotangent[..., order])
    rounding = 1e4 * torch.finfo(dtype).eps
    torch.testing.assert_close(other.weights, solution.weights[..., order], rtol=0, atol=rounding)
    for of, g in found.items():
        right = expected[of]
        right = right[..., order, :][..., order] if of == "M" else right[..., order] if right.ndim > 1 else right
        torch.testing.assert_close(g, right, rtol=0, atol=rounding * max(float(right.abs().max()), 1e-3), msg=of)


def test_single_precision_follows_its_units_where_ties_were_once_measured_in_slopes():
    for unit in (1.0, 1e3, 1e5, 1e20, 1e-20):
        q = torch.tensor([0.0, -0.8 * unit], requires_grad=True)
        solve(AffineVI(unit * torch.eye(2), q)).weights[0].backward()
        torch.testing.assert_close(q.grad * unit, torch.tensor([-0.5, 0.5]), rtol=0, atol=1e-6)
    q = (torch.tensor([0.0, -0.75]) + 4096).requires_grad_()
    solve(AffineVI(torch.eye(2), q)).weights[0].backward()
    torch.testing.assert_close(q.grad, torch.tensor([-0.5, 0.5]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", EXACT[:3], ids=str)
@pytest.mark.parametrize(
    ("dtype", "exponents"), [(torch.float64, (-500, 400)), (torch.float32, (-90, 80))], ids=["float64", "float32"]
)
def test_units_near_the_ends_of_the_range_of_the_type_are_units_too(options, dtype, exponents):
    for name in ("Simplex", "Box", "Budget"):
        case = away_from_ties(name, 3, 3, seed=10, margin=0.02)
        case = replace(case, data={k: v.to(dtype) for k, v in case.data.items()})
        solution = solve(case.problem(), on_failure="raise", **options)
        for exponent in exponents:
            other = solve(in_slopes(case, 2.0**exponent)[0].problem(), on_failure="ignore", max_iter=2000, **options)
            assert other.converged.all(), f"{name} 2^{exponent}"
            atol = 1e2 * float(solution.tolerance.max())  # the tolerance, times the condition
            torch.testing.assert_close(other.weights, solution.weights, rtol=0, atol=atol)


@pytest.mark.slow
@every_set
@PRECISIONS
@pytest.mark.parametrize("kind", ["plain", "game", "skew", "rank deficient", "duplicated"])
def test_powers_of_two_change_no_bit_in_many_problems(name, dtype, kind):
    for L in (1, 2, 3, 8, 12):
        case = random_case(name, L, 50, seed=L, kind=kind, dtype=dtype)
        for exponent in (-60, -20, 13, 60) if dtype == torch.float64 else (-20, 13):
            hold_exactly(case, *in_slopes(case, 2.0**exponent), DEFAULT)
            if name in IN_OTHER_WEIGHTS:
                hold_exactly(case, *in_weights(case, 2.0 ** (exponent // 2)), DEFAULT)
