"""Random problems for the tests: every named set, every kind of matrix, always from a printed seed."""

from dataclasses import dataclass, field, replace

import torch
from oracle import tie_margin

from solvers import AffineVI, Box, Budget, CappedSimplex, FeasibleSet, Free, NonNegative, Simplex, SumTo, solve

INF = float("inf")

# name: (constructor from the set's tensors and a mask, names of those tensors, whether coordinates are masked out)
SETS = {
    "Simplex": (lambda d, m: Simplex(mask=m), (), False),
    "Simplex masked": (lambda d, m: Simplex(mask=m), (), True),
    "CappedSimplex": (lambda d, m: CappedSimplex(0.2 + 1 / d["q"].shape[-1], mask=m), (), False),
    "CappedSimplex tensor": (lambda d, m: CappedSimplex(d["cap"], mask=m), ("cap",), False),
    "CappedSimplex masked": (lambda d, m: CappedSimplex(d["cap"], mask=m), ("cap",), True),
    "Box": (lambda d, m: Box(mask=m), (), False),
    "Box signed": (lambda d, m: Box(d["low"], d["high"], mask=m), ("low", "high"), False),
    "Box masked": (lambda d, m: Box(d["low"], d["high"], mask=m), ("low", "high"), True),
    "Box positive": (lambda d, m: Box(d["floor"], d["floor"] + d["high"], mask=m), ("floor", "high"), False),
    "Box negative": (lambda d, m: Box(-d["floor"] - d["high"], -d["floor"], mask=m), ("floor", "high"), False),
    "Box half open": (lambda d, m: Box(_every_other(d["low"], -INF, 0), _every_other(d["high"], INF, 1), mask=m),
                      ("low", "high"), False),
    "Box below zero": (lambda d, m: Box(-INF, 0.0, mask=m), (), False),
    "NonNegative": (lambda d, m: NonNegative(mask=m), (), False),
    "NonNegative masked": (lambda d, m: NonNegative(mask=m), (), True),
    "Budget": (lambda d, m: Budget(0.7, mask=m), (), False),
    "Budget tensor": (lambda d, m: Budget(d["budget"], mask=m), ("budget",), False),
    "Budget masked": (lambda d, m: Budget(d["budget"], mask=m), ("budget",), True),
    "SumTo": (lambda d, m: SumTo(d["sum"], mask=m), ("sum",), False),
    "SumTo masked": (lambda d, m: SumTo(d["sum"], mask=m), ("sum",), True),
    "Free": (lambda d, m: Free(mask=m), (), False),
    "Free masked": (lambda d, m: Free(mask=m), (), True),
    "signed sum": (lambda d, m: FeasibleSet(d["low"], d["high"], d["inner"], True, m), ("low", "high", "inner"), False),
    "signed budget": (lambda d, m: FeasibleSet(d["low"], d["high"], d["inner"], False, m), ("low", "high", "inner"),
                      False),
}  # fmt: skip

MASKED = tuple(name for name, (_, _, masked) in SETS.items() if masked)
KINDS = ("plain", "game", "skew", "rank deficient", "duplicated", "zero data", "large", "small", "far", "near")
KINDS += ("uneven",)
"""Of M and q. The last five: both × 1e6, both × 1e-6, q × 1e6, q × 1e-6, each weight in its own unit of 1e-3 to 1e3."""


@dataclass(frozen=True)
class Case:
    """A batch of problems, and the tensors that it is made of: ``case.problem(q=other)`` is the same with another q."""

    name: str
    data: dict
    mask: torch.Tensor | None = None
    options: dict = field(default_factory=dict)

    def problem(self, **changed):
        data = self.data | changed
        feasible = SETS[self.name][0](data, self.mask)
        return AffineVI(data["M"], data["q"], feasible, l1=data.get("l1", 0.0), **self.options)

    def leaves(self):
        """The same with every tensor a leaf that requires a gradient."""
        return replace(self, data={k: v.detach().clone().requires_grad_() for k, v in self.data.items()})

    def item(self, *index):
        mask = None if self.mask is None else self.mask[index]
        return replace(self, data={k: v[index] for k, v in self.data.items()}, mask=mask)


def random_case(name, L, batch, seed, kind="plain", l1=True, dtype=torch.float64):
    """A batch of problems on the set ``name`` with a matrix of the given kind; ½(M + Mᵀ) is positive definite."""
    generator = torch.Generator().manual_seed(seed)
    batch = (batch,) if isinstance(batch, int) else tuple(batch)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*batch, *shape, generator=generator, dtype=torch.float64)

    M, q = matrix(kind, L, batch, generator)
    data = {"M": M, "q": q}
    if l1:
        data["l1"] = uniform(0.02, 0.5, L) * M.diagonal(dim1=-2, dim2=-1)
    data |= {"low": uniform(-1.0, -0.1, L), "high": uniform(0.1, 1.0, L), "floor": uniform(0.1, 0.4, L)}
    data |= {"cap": uniform(1.2, 3.0, L) / L, "budget": uniform(0.3, 2.0), "sum": uniform(-1.5, 1.5)}
    share = uniform(0.2, 0.8)
    mask = None
    if SETS[name][2]:
        mask = uniform(0.0, 1.0, L) < 0.7
        mask[..., 0] = True
        data["cap"] = data["cap"] * L / mask.sum(-1, keepdim=True)
    exists = torch.ones_like(q) if mask is None else mask.double()
    low, high = ((data[bound] * exists).sum(-1) for bound in ("low", "high"))
    data["inner"] = low + share * (high - low)
    used = ("M", "q", "l1", *SETS[name][1])
    return Case(name, {k: v.to(dtype) for k, v in data.items() if k in used}, mask)


def away_from_ties(name, L, batch, seed, kind="plain", margin=1e-3):
    """Items whose every slack is at least ``margin``, so that small steps and errors meet no kink of the solution.

    One mask for the whole batch, because cvxpylayers compiles one program per mask.
    """
    many = 64 + 8 * batch
    case = random_case(name, L, many, seed, kind)
    if case.mask is not None:
        mask = torch.arange(L) % 3 != 1
        case = replace(case, mask=mask.expand(many, L))
        if "cap" in case.data:
            case.data["cap"] = case.data["cap"] * L / mask.sum()
    solution = solve(case.problem(), on_failure="raise")
    far = torch.from_numpy(tie_margin(case.problem(), solution.weights)) > margin
    chosen = far.nonzero()[:batch, 0]
    assert len(chosen) == batch, f"only {len(chosen)} items of seed {seed} are away from ties"
    return case.item(chosen)


def matrix(kind, L, batch, generator):
    """M and q as aggregation makes them from scale outputs Y: M = YYᵀ/d + ρI, q = −Yt/d, with A∘ for a game."""

    def normal(*shape):
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)

    eye, d = torch.eye(L, dtype=torch.float64), max(L, 2)
    Y, target, ridge = normal(L, d), normal(d), 0.1
    if kind == "rank deficient":
        d = max(L // 2, 1)
        Y, target = normal(L, d), normal(d)
        ridge = 10 ** (-2 - 6 * torch.rand(*batch, 1, 1, generator=generator, dtype=torch.float64))
    if kind == "duplicated":
        Y, ridge = Y[..., torch.arange(L) // 2 * 2, :], 1e-4
    if kind == "zero data":
        Y = 0.0 * Y
    M, q = Y @ Y.mT / d, -(Y @ target.unsqueeze(-1)).squeeze(-1) / d
    antisymmetric = normal(L, L)
    antisymmetric = antisymmetric - antisymmetric.mT
    if kind == "game":
        M = (1 + antisymmetric) * M
    if kind == "skew":
        M, q = M + 3 * antisymmetric, q + normal(L)
    M = M + ridge * eye
    factor = {"large": (1e6, 1e6), "small": (1e-6, 1e-6), "far": (1.0, 1e6), "near": (1.0, 1e-6)}.get(kind, (1.0, 1.0))
    if kind == "uneven":
        scale = 10 ** (3 * (2 * torch.rand(*batch, L, generator=generator, dtype=torch.float64) - 1))
        M, q = M * scale.unsqueeze(-1) * scale.unsqueeze(-2), q * scale
    return factor[0] * M, factor[1] * q


def _every_other(bound, infinite, first):
    """``bound`` with every other entry replaced by an infinite one."""
    keep = torch.arange(bound.shape[-1]) % 2 == first
    return torch.where(keep, bound, infinite)
