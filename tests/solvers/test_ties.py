"""Where the solution map has a kink: the gradient is the one-sided derivative of the documented side.

Documented (`solvers.gradients`): a coordinate on a threshold counts as held and a budget as active; where no coordinate
is free and the sum is tight, the one is released that would rise first if the sum could grow, or, if none can rise, the
one that would fall first if it shrank.
"""

import pytest
import torch
from oracle import one_sided
from problems import SETS, away_from_ties, random_case

from solvers import AffineVI, Box, Budget, CappedSimplex, FeasibleSet, Simplex, SumTo, solve

STEP = 1e-7  # one-sided differences are wrong by about the curvature (up to 1e3) times the step
CLOSE, APART = 2e-4, 2e-3


def slope_of(case, cotangent, direction):
    """The derivative of ``cotangent · w`` along ``direction`` by our gradient."""
    case = case.leaves()
    w = solve(case.problem(), on_failure="raise").weights
    found = torch.autograd.grad((w * cotangent).sum(), list(case.data.values()), allow_unused=True)
    return sum((g * direction[k]).sum().item() for k, g in zip(case.data, found, strict=True) if g is not None)


def bounds_of(problem):
    return problem.feasible.lower, problem.feasible.upper


def at_threshold(name, place, seed):
    """A single problem with one coordinate exactly on the threshold of being held at ``place``, and which one."""
    L = 4
    for offset in range(200):
        case = away_from_ties(name, L, 1, seed=1000 * seed + offset, kind="game", margin=1e-2).item(0)
        problem = case.problem()
        w = solve(problem, on_failure="raise").weights
        low, high = (torch.as_tensor(b, dtype=w.dtype).expand(L) for b in bounds_of(problem))
        l1 = torch.as_tensor(problem.l1, dtype=w.dtype).expand(L)
        force = -(case.data["M"] @ w + case.data["q"])
        exists = torch.ones(L, dtype=torch.bool) if case.mask is None else case.mask
        free = (w - low > 1e-9) & (high - w > 1e-9) & ~((w == 0) & (l1 > 0) & (low < 0)) & exists
        price = torch.tensor(0.0, dtype=w.dtype)
        total = problem.feasible.total
        if total is not None and abs(w.sum() - total) < 1e-9:
            if not free.any():
                continue
            price = (force - l1 * w.sign())[free].mean()
        held = {"lower": w == low, "upper": w == high, "kink": (w == 0) & (low < 0) & (high > 0)}[place] & exists
        if held.any() and free.any():
            i = int(held.nonzero()[0, 0])
            edge = {"lower": l1[i] if low[i] >= 0 else -l1[i], "upper": l1[i] if high[i] > 0 else -l1[i]}
            threshold = edge.get(place, l1[i])
            case.data["q"][i] += force[i] - price - threshold  # now the force is on the threshold
            return case, i
    raise AssertionError(f"no seed gives a coordinate held at {place}")


def bound_of(problem, i, place):
    bound = {"lower": problem.feasible.lower, "upper": problem.feasible.upper}.get(place, 0.0)
    return torch.as_tensor(bound, dtype=torch.float64).expand(problem.size)[i].item()


TIES = [(name, "lower") for name in SETS if not name.startswith(("SumTo", "Free", "Box below"))]
TIES += [(name, "upper") for name in SETS if name.startswith(("Capped", "Box", "signed"))]
TIES += [(name, "kink") for name in ("Box signed", "Box masked", "Box half open", "SumTo", "Free", "signed sum",
                                     "signed budget")]  # fmt: skip


@pytest.mark.parametrize(("name", "place"), TIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_coordinate_on_a_threshold_counts_as_held(name, place, seed):
    case, i = at_threshold(name, place, seed)
    generator = torch.Generator().manual_seed(seed)
    direction = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in case.data.items()}
    cotangent = torch.randn(4, generator=generator, dtype=torch.float64)

    def weights(**data):
        return solve(case.problem(**data), on_failure="raise").weights

    ours, sides = slope_of(case, cotangent, direction), {}
    for sign in (1.0, -1.0):
        moved = case.problem(**{k: v + sign * STEP * direction[k] for k, v in case.data.items()})
        held = abs(solve(moved).weights[i].item() - bound_of(moved, i, place)) < 1e-3 * STEP
        slope = (cotangent * one_sided(weights, case.data, direction, sign * STEP)).sum().item()
        sides["held" if held else "free"] = slope
    assert set(sides) == {"held", "free"}, "the constructed problem is not at a tie"
    scale = max(1.0, abs(ours))
    assert abs(ours - sides["held"]) <= CLOSE * scale, sides
    assert abs(sides["free"] - sides["held"]) >= APART, "the two sides are alike: the test proves nothing"


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_a_budget_that_just_suffices_counts_as_active(seed):
    case = random_case("NonNegative", 4, 1, seed).item(0)
    case.data["budget"] = solve(case.problem(), on_failure="raise").weights.sum()
    case = type(case)("Budget tensor", case.data)
    assert case.data["budget"] > 0.05, "nothing is bought: choose another seed"
    direction = {k: torch.zeros_like(v) for k, v in case.data.items()}
    direction["budget"] -= 1.0  # less budget keeps it active, more makes it slack
    cotangent = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def weights(**data):
        return solve(case.problem(**data), on_failure="raise").weights

    active = (cotangent * one_sided(weights, case.data, direction, STEP)).sum().item()
    slack = (cotangent * one_sided(weights, case.data, direction, -STEP)).sum().item()
    assert abs(slack) <= CLOSE
    assert abs(active) >= APART
    assert abs(slope_of(case, cotangent, direction) - active) <= CLOSE * max(1.0, abs(active))


def vertex_slopes(build, moved, cotangent):
    """Our derivative with respect to the tensor ``moved``, along 1, and the differences to either side."""
    leaf = moved.clone().requires_grad_()
    (ours,) = torch.autograd.grad((solve(build(leaf), on_failure="raise").weights * cotangent).sum(), leaf)

    def weights(x):
        return solve(build(x), on_failure="raise").weights

    more, less = (
        (cotangent * one_sided(weights, {"x": moved}, {"x": torch.ones_like(moved)}, s * STEP)).sum().item()
        for s in (1.0, -1.0)
    )
    return ours.sum().item(), more, less


M = torch.tensor(
    [[1.0, 0.1, 0.0, 0.2], [0.1, 1.0, 0.3, 0.0], [0.0, 0.3, 1.0, 0.1], [0.2, 0.0, 0.1, 1.0]], dtype=torch.float64
)
Q = torch.tensor([-5.0, -4.0, -0.6, -0.2], dtype=torch.float64)
COTANGENT = torch.tensor([1.0, 3.0, -2.0, 0.5], dtype=torch.float64)
HALF = torch.full((4,), 0.5, dtype=torch.float64)


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def test_at_a_vertex_the_coordinate_that_rises_first_takes_what_the_total_grows_by():
    ours, more, less = vertex_slopes(lambda s: AffineVI(M, Q, FeasibleSet(0.0, HALF, s)), number(1.0), COTANGENT)
    assert ours == pytest.approx(more, abs=CLOSE) == pytest.approx(-2.0, abs=CLOSE)  # coordinate 2 enters
    assert less == pytest.approx(3.0, abs=CLOSE)  # coordinate 1 would leave


def test_at_a_vertex_a_smaller_cap_is_made_up_for_by_the_coordinate_that_rises_first():
    def build(cap):
        return AffineVI(M, Q, CappedSimplex(torch.stack((cap, *HALF[1:]))))

    ours, _, less = vertex_slopes(build, number(0.5), COTANGENT)
    assert ours == pytest.approx(less, abs=CLOSE) == pytest.approx(1.0 + 2.0, abs=CLOSE)  # 0 moves, 2 moves against it


def test_where_none_can_rise_the_coordinate_that_falls_first_gives_what_the_total_shrinks_by():
    def build(total):
        return AffineVI(M, Q, FeasibleSet(0.0, HALF, total))

    leaf = number(2.0).requires_grad_()
    (ours,) = torch.autograd.grad((solve(build(leaf), on_failure="raise").weights * COTANGENT).sum(), leaf)
    less = (one_sided(lambda x: solve(build(x)).weights, {"x": number(2.0)}, {"x": 1.0}, -STEP) * COTANGENT).sum()
    assert ours.item() == pytest.approx(less.item(), abs=CLOSE) == pytest.approx(0.5, abs=CLOSE)  # coordinate 3 falls


def test_where_all_are_at_the_kink_the_coordinate_that_rises_first_takes_the_total():
    ours, more, _ = vertex_slopes(lambda s: AffineVI(M, 0.1 * Q, SumTo(s), l1=20.0 + Q), number(0.0), COTANGENT)
    assert ours == pytest.approx(more, abs=CLOSE)
    assert any(more == pytest.approx(c, abs=CLOSE) for c in COTANGENT.tolist())


@pytest.mark.parametrize("kind", ["equality", "budget", "l1"])
def test_a_total_of_zero_is_first_spent_on_the_coordinate_that_rises_first(kind):
    def build(total):
        return AffineVI(M, Q, FeasibleSet(lower=0.0, total=total, equality=kind != "budget"), l1=0.1 * (kind == "l1"))

    leaf = number(0.0).requires_grad_()
    (ours,) = torch.autograd.grad((solve(build(leaf), on_failure="raise").weights * COTANGENT).sum(), leaf)
    more = (one_sided(lambda x: solve(build(x)).weights, {"x": number(0.0)}, {"x": 1.0}, STEP) * COTANGENT).sum()
    assert more.item() == pytest.approx(1.0, abs=CLOSE)  # coordinate 0
    assert ours.item() == pytest.approx(more.item(), abs=CLOSE)


def test_the_projection_of_the_published_tie_is_that_of_sparsemax():
    q = torch.tensor([-0.6, -0.4, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    w = solve(AffineVI(torch.eye(4, dtype=torch.float64), q, Simplex())).weights
    (row,) = torch.autograd.grad(w[0], q)
    torch.testing.assert_close(row, number([-0.5, 0.5, 0.0, 0.0]), rtol=0, atol=1e-15)  # not −2/3, 1/3, 1/3


def test_equal_scales_share_their_weight_and_their_gradients_are_equal():
    Y = torch.ones(4, 3, dtype=torch.float64)
    q = torch.full((4,), -1.0, dtype=torch.float64, requires_grad=True)
    problem = AffineVI(Y @ Y.mT + 1e-4 * torch.eye(4, dtype=torch.float64), q, Simplex())
    w = solve(problem, on_failure="raise").weights
    torch.testing.assert_close(w, torch.full_like(w, 0.25), rtol=0, atol=1e-11)  # condition number 1e5
    (row,) = torch.autograd.grad(w.sum(), q)
    assert row.abs().max() <= 1e-7  # the sum is constant; its terms are 1e4, of condition 1e5


def test_pinned_coordinates_follow_their_bound():
    bound = number([0.2, 0.3]).requires_grad_()
    w = solve(AffineVI(M[:2, :2], Q[:2], Box(bound, bound)), on_failure="raise").weights
    (moved,) = torch.autograd.grad((w * COTANGENT[:2]).sum(), bound)
    torch.testing.assert_close(moved, COTANGENT[:2], rtol=0, atol=1e-15)
    budget = number(0.0).requires_grad_()
    assert torch.autograd.grad(solve(AffineVI(M, -Q, Budget(budget))).weights.sum(), budget)[0].isfinite()
