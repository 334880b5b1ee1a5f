"""The implicit gradient: held against finite differences, for every set and every tensor, once and twice."""

import pytest
import torch
from oracle import directional
from problems import KINDS, SETS, away_from_ties, random_case
from torch.autograd import gradcheck, gradgradcheck

from solvers import AffineVI, Budget, Simplex, solve

every_set = pytest.mark.parametrize("name", SETS)
symmetric_and_not = pytest.mark.parametrize("kind", ["plain", "game"], ids=["symmetric", "not symmetric"])


def as_function(case):
    """The weights as a function of the case's tensors, and those tensors as leaves."""
    case = case.leaves()

    def weights(*tensors):
        return solve(case.problem(**dict(zip(case.data, tensors, strict=True))), on_failure="raise").weights

    return weights, tuple(case.data.values())


def gradients(case, cotangent, **options):
    case = case.leaves()
    w = solve(case.problem(), on_failure="ignore", **options).weights
    found = torch.autograd.grad((w * cotangent).sum(), list(case.data.values()), allow_unused=True)
    return {k: torch.zeros_like(case.data[k]) if g is None else g for k, g in zip(case.data, found, strict=True)}


@every_set
@symmetric_and_not
def test_gradient_of_every_tensor_is_right(name, kind):
    # no slack is below 1e-3, so that steps of 1e-6 stay on one smooth piece
    assert gradcheck(*as_function(away_from_ties(name, 3, 2, seed=0, kind=kind)))


@every_set
def test_gradient_of_the_gradient_is_right(name):
    assert gradgradcheck(*as_function(away_from_ties(name, 3, 1, seed=1, kind="game")))


@pytest.mark.slow
@every_set
@symmetric_and_not
@pytest.mark.parametrize("seed", range(2, 5))
def test_gradient_and_its_gradient_are_right_for_more_seeds_and_coordinates(name, kind, seed):
    function = as_function(away_from_ties(name, 5, 2, seed=seed, kind=kind))
    assert gradcheck(*function)
    assert gradgradcheck(*function)


@every_set
def test_gradient_agrees_with_five_point_differences_along_random_directions(name):
    for L, seed in ((1, 0), (2, 1), (8, 2), (20, 3)):
        case = away_from_ties(name, L, 4, seed=seed, kind="game")
        generator = torch.Generator().manual_seed(seed)
        direction = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in case.data.items()}
        cotangent = torch.randn(4, L, generator=generator, dtype=torch.float64)

        def weights(case=case, **data):
            return solve(case.problem(**data), on_failure="raise").weights

        slope = (cotangent * directional(weights, case.data, direction, step=1e-5)).sum()
        ours = sum((g * direction[k]).sum() for k, g in gradients(case, cotangent).items())
        # rounding 1e-16 · condition 1e2 / step 1e-5, and slopes of up to a few hundred
        assert abs(ours - slope) <= 1e-7 * max(1.0, abs(slope)), f"L={L} seed={seed}"


def test_gradient_of_tensors_shared_by_the_batch_is_the_sum_over_its_items():
    case = away_from_ties("signed sum", 3, 5, seed=4)
    shared = type(case)(case.name, {k: v if k == "q" else v[0] for k, v in case.data.items()})
    own = type(case)(case.name, {k: v if k == "q" else v[0].expand_as(v) for k, v in case.data.items()})
    cotangent = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = gradients(own, cotangent)
    for of, found in gradients(shared, cotangent).items():
        total = expected[of] if of == "q" else expected[of].sum(0)
        torch.testing.assert_close(found, total, rtol=1e-12, atol=1e-12)  # five roundings


def test_gradient_of_a_large_batch_equals_that_of_small_ones():
    for name in SETS:
        case = random_case(name, 4, 1200, seed=5, kind="game")  # large batches are eliminated elementwise
        cotangent = torch.randn(1200, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        together, part = gradients(case, cotangent), gradients(case.item(slice(700, 800)), cotangent[700:800])
        for of, found in together.items():
            torch.testing.assert_close(found[700:800], part[of], rtol=1e-9, atol=1e-9)  # condition number up to 1e4


@pytest.mark.parametrize("solver", ["best_response", "projected_gradient", "mirror_descent"])
def test_implicit_gradient_does_not_depend_on_the_solver(solver):
    for name in ("Simplex",) if solver == "mirror_descent" else ("Simplex", "Box signed", "signed budget"):
        case = away_from_ties(name, 4, 4, seed=6, margin=0.02)
        cotangent = torch.randn(4, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        expected = gradients(case, cotangent)
        for of, found in gradients(case, cotangent, solver=solver).items():
            torch.testing.assert_close(found, expected[of], rtol=1e-6, atol=1e-6)  # its weights are right to 1e-9


def test_gradient_in_float32_is_that_of_float64_rounded():
    for name in SETS:
        case = away_from_ties(name, 4, 4, seed=7, margin=0.01)
        cotangent = torch.randn(4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        expected = gradients(case, cotangent)
        single = type(case)(case.name, {k: v.float() for k, v in case.data.items()}, case.mask)
        for of, found in gradients(single, cotangent.float()).items():
            assert found.dtype == torch.float32
            scale = float(expected[of].abs().max().clamp_min(1.0))
            assert (found - expected[of]).abs().max() <= 1e-3 * scale, (name, of)  # rounding 1e-7, condition 1e3


@every_set
def test_gradients_are_finite_for_every_kind_of_matrix_and_where_everything_ties(name):
    for seed, kind in enumerate(KINDS):
        for L in (1, 2, 4):
            case = random_case(name, L, 10, seed, kind)
            if kind == "zero data":  # w = 0 or all equal: nothing but ties
                case.data["l1"] = 0.0 * case.data["l1"]
            for of, found in gradients(case, torch.ones(L, dtype=torch.float64)).items():
                assert found.isfinite().all(), f"{kind} L={L} seed={seed}: {of}"


def test_gradients_of_sets_of_a_single_point_are_finite():
    for name in ("Box signed", "signed sum", "signed budget", "CappedSimplex tensor", "Budget tensor"):
        case = random_case(name, 4, 10, seed=8)
        data = case.data
        if "low" in data:
            data["high"] = data["low"]
        for bound, value in (("inner", data.get("low")), ("cap", None), ("budget", None)):
            if bound in data:
                data[bound] = value.sum(-1) if bound == "inner" else torch.full_like(data[bound], 0.25)
        if "budget" in data:
            data["budget"] = torch.zeros(10, dtype=torch.float64)
        cotangent = torch.randn(10, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        for of, found in gradients(case, cotangent).items():
            assert found.isfinite().all(), f"{name}: {of}"


@every_set
def test_faulty_items_pass_no_gradient_to_shared_tensors(name):
    case = away_from_ties(name, 3, 4, seed=9)
    shared = {k: v[0] if k in ("M", "l1", "low", "high", "cap", "floor") else v for k, v in case.data.items()}
    q = shared["q"].clone()
    q[1], q[2, 0] = torch.nan, torch.inf
    good = torch.tensor([0, 3])
    mask = None if case.mask is None else case.mask[good]
    per_item = {k: v[good] for k, v in shared.items() if k not in ("M", "l1", "low", "high", "cap", "floor")}
    rest = type(case)(name, shared | per_item, mask)
    spoiled = type(case)(name, shared | {"q": q}, case.mask)
    cotangent = torch.randn(3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected = gradients(rest, cotangent)
    for of, found in gradients(spoiled, cotangent).items():
        assert found.isfinite().all(), of
        found = found[good] if of in per_item else found
        torch.testing.assert_close(found, expected[of], rtol=1e-12, atol=1e-12)  # another summation order


def test_a_faulty_item_passes_no_gradient_to_a_total_and_gets_none_itself():
    total = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[-1.0, -2.0], [torch.nan, 0.0]], dtype=torch.float64, requires_grad=True)
    eye = torch.eye(2, dtype=torch.float64)
    solve(AffineVI(eye, q, Budget(total)), on_failure="ignore").weights[0, 1].backward()
    assert total.grad == 1.0
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_weights_that_need_no_gradient_carry_none_and_the_first_pass_can_be_repeated():
    case = random_case("Simplex", 3, 2, seed=10)
    assert not solve(case.problem()).weights.requires_grad
    q = case.data["q"].requires_grad_()
    w = solve(AffineVI(case.data["M"], q, Simplex())).weights
    (first,) = torch.autograd.grad(w[:, 0].sum(), q, retain_graph=True)
    (again,) = torch.autograd.grad(w[:, 0].sum(), q)
    assert torch.equal(first, again)
    with torch.no_grad():
        assert not solve(AffineVI(case.data["M"], q, Simplex())).weights.requires_grad
