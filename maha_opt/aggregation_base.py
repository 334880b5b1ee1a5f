"""What the aggregation modules share: how scale outputs become problems, solvers behind a flag, and the fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from maha_opt.problems import Posed
from maha_opt.scale_outputs import (
    ScaleOutputs,
    check_exact,
    check_mask,
    checked_outputs,
    full_precision,
    in_common_units,
    is_of_no_common_size,
    of_unit_size,
    real_part,
)
from maha_opt.sets import SetLike, inverse_softplus, make_set
from maha_opt.solver_choice import ChoosesSolver, check_choice, choose
from solvers import AffineVI, FeasibleSet, Solution, solve
from solvers.registry import Solver
from solvers.standard_form import is_tracing

GRANULARITIES = ("token", "token_head", "sequence", "head")
Granularity = Literal["token", "token_head", "sequence", "head"]
Prices = Tensor | Sequence[float] | Literal["learned"] | None

FIRST_PRICE = 0.05
"""Where learned prices start, in units of the mean square of the scale outputs."""


class AggregationOptions(TypedDict, total=False):
    """Options of every aggregation, which `Aggregation` documents."""

    granularity: Granularity
    feasible: SetLike
    feasible_options: Mapping[str, object] | None
    prices: Prices
    ridge: float
    normalise: bool
    solver: str | Solver
    gradient: str
    solver_options: Mapping[str, object] | None
    on_failure: str


class HeadOptions(AggregationOptions, total=False):
    """The same, with what a model tells its aggregations."""

    num_heads: int
    causal: bool


class Aggregated(NamedTuple):
    """What an aggregation returns.

    Attributes:
        output: (batch, n, d_model), of the type of the scale outputs; zero at padding.
        solution: The weights with their certificate; `solution.weights` is (batch, n, L) where the granularity is
            "token", (batch, n, heads, L) for "token_head", (batch, L) for "sequence" and (batch, heads, L) for "head",
            in at least float32. Weights of padding tokens mean nothing.
    """

    output: Tensor
    solution: Solution


class Aggregation(ChoosesSolver, nn.Module):
    """What the aggregations share: granularity, prices, the feasible set, and the solver behind its flag.

    A subclass says in `_problem` which problem it makes of the scale outputs, and in `_target` what else goes in.

    Args:
        num_scales: Number of scales L.
        d_model: Number of channels.
        num_heads: Number of heads, for the granularities that have one set of weights for each; divides `d_model`.
        granularity: Who gets weights of its own: every "token", every "token_head", every "sequence" or every "head" of
            a sequence. The latter two make one problem of the mean over the real tokens.
        causal: Refuses the granularities that would tell a token of those after it.
        feasible: Name of the set of allowed weights (`available_sets`), or a set, or a function or module from the mask
            of the scales that exist to a set.
        feasible_options: Options of a set given by its name, see `make_set`: {"cap": 0.5}, {"lower": -1, "upper": 1},
            {"total": 2.0, "learn_total": True}.
        prices: Of every scale, ≥ 0, for the term `Σ_l λ_l|w_l|`, in units of the mean square of the scale outputs: L
            numbers, or "learned", or None for no such term. **On the simplex uniform prices do nothing**, because
            `Σ|w_l| = 1` is a constant there: only their differences act, and get a gradient.
        ridge: > 0, in units of the mean square of the scale outputs; makes the solution unique.
        normalise: Whether the problems see every scale output divided by its root mean square, so that they choose
            between directions and not sizes: a coarse scale, whose outputs are averages of averages, is small, and a
            convex fusion likes what is small. The fused output is the sum of the outputs themselves either way.
        solver: One of `solvers.available_solvers`, or a solver object.
        gradient: "implicit", "unrolled" or "one_step"; which of them a solver takes is said by `solvers.solve`.
        solver_options: Options of the solver, and `tol` and `max_iter`, as `solvers.solve` takes them. Numbers may be
            of numpy, or tensors without dimensions.
        on_failure: What an answer above its tolerance does: "raise", "warn" or "ignore".

    No solver owns a parameter: `set_solver` exchanges it at any time, also on a loaded checkpoint, and the state dict
    is the same for all. `solver`, `gradient`, `solver_options` and `on_failure` may be assigned too: an assigned solver
    keeps those options, and the gradient, that it has as well, and all are checked when they are assigned. Every
    parameter gets a gradient, be it zero.

    Weights, and gradients of parameters, do not depend on the unit of the scale outputs, and of the target with them:
    where squares of these might leave the type's range, the problems are posed in other units, powers of two. In
    float32 that holds from 1e-35 to 1e35, of targets up to 1e14 times as large. The heuristic "softmax" solves nothing,
    and its weights do depend on it.

    Raises:
        TypeError: An argument has the wrong type, or the set or the solver does not take one of its options.
        ValueError: An argument is out of its range, or the solver does not take the set or the gradient; the message
            names it.
    """

    reads_scales = True
    """Whether what the scales say enters the problems."""
    prices: Tensor | None
    raw_prices: nn.Parameter | None

    def __init__(
        self,
        num_scales: int,
        d_model: int,
        *,
        num_heads: int = 1,
        granularity: Granularity = "token",
        causal: bool = False,
        feasible: SetLike = "simplex",
        feasible_options: Mapping[str, object] | None = None,
        prices: Prices = None,
        ridge: float = 1e-2,
        normalise: bool = False,
        solver: str | Solver = "pivot",
        gradient: str = "implicit",
        solver_options: Mapping[str, object] | None = None,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        for name, number in (("num_scales", num_scales), ("d_model", d_model)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, but got {number}.")
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model = {d_model}, but got {num_heads}.")
        check_choice("granularity", granularity, GRANULARITIES)
        if causal and granularity in ("sequence", "head"):
            raise ValueError(
                f"granularity={granularity!r} makes one set of weights of the whole sequence, which tells every token "
                "of those after it; a causal model takes 'token' or 'token_head'."
            )
        if not 0 < ridge < float("inf"):
            raise ValueError(f"ridge must be positive and finite, but got {ridge}.")
        self.num_scales = num_scales
        self.d_model = d_model
        self.num_heads = num_heads
        self.granularity = granularity
        self.causal = causal
        self.ridge = ridge
        self.normalise = normalise
        self.feasible = make_set(feasible, feasible_options)
        if isinstance(self.feasible, FeasibleSet) and self.feasible.is_fixed:  # say now that it is empty, not later
            AffineVI(torch.eye(num_scales), torch.zeros(num_scales), feasible=self.feasible)
        learned = isinstance(prices, str)
        if learned:
            check_choice("prices", prices, ("learned",))
        first = torch.full((num_scales,), inverse_softplus(FIRST_PRICE))
        self.register_parameter("raw_prices", nn.Parameter(first) if learned else None)
        self.register_buffer("prices", None if prices is None or learned else _checked_prices(prices, num_scales))
        self.choice = choose(solver, gradient, solver_options or {}, on_failure, self.feasible)

    def forward(
        self, Y: Tensor, available: Tensor | None = None, inputs: Tensor | None = None, mask: Tensor | None = None
    ) -> Aggregated:
        """Fuses the scales.

        Args:
            Y: (batch, n, L, d_model) scale outputs, floating point; float16 and bfloat16 are solved in float32.
            available: (batch, n, L) bool, True where a scale exists for a token; None: all do. The others get weight 0
                and are ignored, whatever they hold.
            inputs: (batch, n, d_model) the block's input, of which a learned target is made; not read otherwise.
            mask: (batch, n) bool, True where the token is real; None: all are. Padding is ignored, whatever it holds.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument has the wrong shape, or the data are faulty everywhere (NaN, Inf); with
                `on_failure="raise"` anywhere, or no scale exists for a token.
            ConvergenceError: Weights are not a solution, or not differentiable, with `on_failure="raise"`.
        """
        return self._aggregate(Y, available, inputs, mask)[0]

    def problem(
        self, Y: Tensor, available: Tensor | None = None, inputs: Tensor | None = None, mask: Tensor | None = None
    ) -> AffineVI:
        """The problems that `forward` solves, which says what goes in and what is raised; to study, or solve otherwise.

        Returns:
            Problems of batch shape (batch, n), (batch, n, heads), (batch,) or (batch, heads), by the granularity
            "token", "token_head", "sequence" or "head". Those of padding mean nothing.
        """
        return self._posed(Y, available, inputs, mask)[0].problem

    def with_objective(
        self,
        Y: Tensor,
        available: Tensor | None = None,
        inputs: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        cleared: bool = False,
    ) -> tuple[Aggregated, Tensor]:
        """What `forward` returns, and how well the weights do: the mean objective of the problems of real tokens.

        The objective is that of the class, divided by the mean square of what went in, so that it does not depend on
        the scale of the data: a scalar ≥ 0 in at least float32. At a minimiser its derivative is the partial one, with
        the weights held fixed (the envelope theorem), so its gradient says how scale outputs, target and coupling would
        have to change for the fusion to lose less; it is never a constant, and works for every solver.

        Args:
            Y: This and all others: see `forward`, which says what is raised too.
            available: See there.
            inputs: See there.
            mask: See there.
            cleared: Whether `Y` is known to be zero where no scale exists and at padding; it is copied otherwise.
        """
        aggregated, posed, outputs, target = self._aggregate(Y, available, inputs, mask, cleared)
        with full_precision(outputs.Y):
            values = self._objective(posed, outputs, target, aggregated.solution.weights)
            if mask is None or self._whole:
                return aggregated, values.mean()
            real = (mask.unsqueeze(-1) if self._per_head else mask).to(values.dtype).expand_as(values)
            return aggregated, (values * real).sum() / real.sum().clamp(min=1)

    def _aggregate(
        self, Y: Tensor, available: Tensor | None, inputs: Tensor | None, mask: Tensor | None, cleared: bool = False
    ) -> tuple[Aggregated, Posed, ScaleOutputs, Tensor | None]:
        posed, outputs, seen, target = self._posed(Y, available, inputs, mask, cleared)
        with full_precision(outputs.Y):
            by = self.choice
            solution = solve(
                posed.problem,
                solver=by.solver,
                gradient=by.gradient,
                on_failure=by.on_failure,  # pyright: ignore[reportArgumentType]
                **by.options,
            )
            fused = self._fused(outputs.Y, solution.weights)
        return Aggregated(fused.to(Y.dtype), solution), posed, seen, target

    def _posed(
        self, Y: Tensor, available: Tensor | None, inputs: Tensor | None, mask: Tensor | None, cleared: bool = False
    ) -> tuple[Posed, ScaleOutputs, ScaleOutputs, Tensor | None]:
        """The problems, the scale outputs that are to be fused, those that the problems see, and the target."""
        checked_outputs(Y)
        batch, n = Y.shape[:2]
        check_exact("Y", Y, (batch, n, self.num_scales, self.d_model))
        for name, given, shape in (("available", available, Y.shape[:3]), ("mask", mask, Y.shape[:2])):
            if given is not None:
                check_mask(name, given, shape)
                check_exact(name, given, shape)
        target = self._target(inputs, mask, (batch, n, self.d_model))
        outputs = self._arranged(Y, available, mask, cleared)
        with full_precision(outputs.Y):
            if not self.reads_scales:
                return self._problem(outputs, target), outputs, outputs, target
            if self.normalise:
                seen = outputs._replace(Y=of_unit_size(outputs.Y))
                return self._problem(seen, target), outputs, seen, target
            if is_tracing(outputs.Y):  # which cannot ask whether that is needed
                seen, target = in_common_units(outputs, target, None)
                return self._problem(seen, target), outputs, seen, target
            posed = self._problem(outputs, target)
            strange = is_of_no_common_size(posed.power)
            if mask is not None and not self._whole:  # padding is zero
                strange = strange & (mask.unsqueeze(-1) if self._per_head else mask)
            if not bool(strange.any()):
                return posed, outputs, outputs, target
            seen, target = in_common_units(outputs, target, strange)
            return self._problem(seen, target), outputs, seen, target

    def extra_repr(self) -> str:
        """The configuration that is not a submodule's."""
        return (
            f"num_scales={self.num_scales}, d_model={self.d_model}, granularity={self.granularity!r}, "
            f"solver={self.solver!r}, gradient={self.gradient!r}"
        )

    def _problem(self, outputs: ScaleOutputs, target: Tensor | None) -> Posed:
        raise NotImplementedError

    def _objective(self, posed: Posed, outputs: ScaleOutputs, target: Tensor | None, weights: Tensor) -> Tensor:
        """The objective of each problem, relative to the size of its data; of the problem that was made of them."""
        raise NotImplementedError

    def _target(self, inputs: Tensor | None, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        """What goes in besides the scale outputs, arranged like them; None: nothing."""
        del inputs, mask, shape
        return None

    def _mapped(self, linear: nn.Linear, inputs: Tensor | None, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """A linear map of the block's input, arranged like the scale outputs."""
        if inputs is None:
            raise ValueError("inputs must be given: the weights depend on a map of the block's input.")
        check_exact("inputs", inputs, shape)
        if mask is not None:  # NaN at padding would come back in the gradient of the map
            inputs = torch.where(mask.unsqueeze(-1), inputs, 0.0)
        return self._by_head(linear(inputs))

    def _set(self, outputs: ScaleOutputs) -> FeasibleSet:
        return self.feasible if isinstance(self.feasible, FeasibleSet) else self.feasible(outputs.available)

    def _terms(self, outputs: ScaleOutputs) -> dict[str, Any]:
        """Ridge and prices, as the problems and their objectives take them."""
        prices: Tensor | float = 0.0 if self.prices is None else self.prices
        if self.raw_prices is not None:
            prices = softplus(self.raw_prices.to(outputs.Y.dtype))
        return {"prices": prices, "ridge": self.ridge}

    @property
    def _per_head(self) -> bool:
        return self.granularity in ("token_head", "head")

    @property
    def _whole(self) -> bool:
        """Whether the tokens of a sequence share their problem."""
        return self.granularity in ("sequence", "head")

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, n, ..., d_model) with heads before the rest, and before n where a head has one problem."""
        if not self._per_head:
            return x
        return x.unflatten(-1, (self.num_heads, -1)).movedim(-2, 1 if self._whole else 2)

    def _arranged(self, Y: Tensor, available: Tensor | None, mask: Tensor | None, cleared: bool) -> ScaleOutputs:
        """Scale outputs as (*batch of the problems, L, d), or (*batch, n, L, d) where tokens share a problem."""
        batch, n, L, _ = Y.shape
        head = 1 if self._whole else 2

        def for_heads(x: Tensor) -> Tensor:
            return x.unsqueeze(head) if self._per_head else x

        if self._whole:
            tokens = torch.ones(batch, n, dtype=torch.bool, device=Y.device) if mask is None else mask
            available = None if available is None else for_heads(available)
            return real_part(self._by_head(Y), available, for_heads(tokens), cleared=cleared)
        exists = available
        if mask is not None:  # padding: zero data, where nothing is lost by letting all scales exist
            real = mask.unsqueeze(-1).expand(batch, n, L)
            exists = real if available is None else real & available
            available = None if available is None else available | ~real
        outputs = real_part(self._by_head(Y), None if exists is None else for_heads(exists), None, cleared=cleared)
        return outputs._replace(available=None if available is None else for_heads(available))

    def _fused(self, Y: Tensor, weights: Tensor) -> Tensor:
        """`Σ_l w_l y_l`, (batch, n, d_model)."""
        if torch.is_grad_enabled() and not self.choice.implicit:
            # Its answer may not depend on all of the problem, or not say how. What does not enter these weights gets a
            # zero gradient rather than none, which DDP would wait for.
            weights = weights + 0.0 * sum(parameter.sum() for parameter in self.parameters())
        if self._whole:
            weights = weights.unsqueeze(-2)
        fused = (weights.contiguous().unsqueeze(-2) @ Y).squeeze(-2)  # else a CPU does it item by item
        if self.granularity == "head":
            fused = fused.transpose(1, 2)
        return fused.flatten(2)


def fusions_of(model: nn.Module) -> list[Aggregation]:
    """Every aggregation in a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Aggregation)]


def _checked_prices(prices: Tensor | Sequence[float], num_scales: int) -> Tensor:
    """Fixed prices as a tensor of their own."""
    # Numbers are looked at on the CPU: on the meta device, where models are built to be loaded, there are none.
    given = isinstance(prices, Tensor)
    tensor = prices.detach().clone() if given else torch.as_tensor(prices, device="cpu")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if tensor.shape != (num_scales,):
        raise ValueError(f"prices must have shape ({num_scales},), one for each scale, but has {tuple(tensor.shape)}.")
    if not tensor.is_meta and not bool(((tensor >= 0) & tensor.isfinite()).all()):
        raise ValueError(f"prices must be non-negative and finite, but got {tensor.tolist()}.")
    return tensor if given else tensor.to(torch.get_default_device())
