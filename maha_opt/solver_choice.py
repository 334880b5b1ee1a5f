"""Who solves a fusion, and how it is differentiated: checked when it is chosen, and exchanged at any time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor

from maha_opt.sets import LearnedTotal
from solvers import FeasibleSet, available_solvers
from solvers.interface import GRADIENTS, ON_FAILURE
from solvers.registry import Solver, make_solver, plain_number, recipe, registered, solver_options

OF_SOLVE = ("tol", "max_iter", "check_monotone")
"""Options of `solvers.solve` that may stand among those of the solver."""

WITHOUT_FLAG = "{} has no flag that a configuration could name: register its class, solvers.registry.register_solver."


@dataclass(frozen=True)
class SolverChoice:
    """A solver, its options and its gradient, which go together.

    Attributes:
        solver: The flag; or a solver object, if its class has none.
        gradient: "implicit", "unrolled" or "one_step".
        options: Of the solver, and of `solvers.solve` those in `OF_SOLVE`.
        on_failure: "raise", "warn" or "ignore".
        implicit: Whether the answer depends on all of the problem, through its optimality conditions.
    """

    solver: str | Solver
    gradient: str
    options: dict[str, Any]
    on_failure: str
    implicit: bool = field(default=True, repr=False)

    def as_config(self) -> dict[str, Any]:
        """The same in terms of JSON, by the names of the arguments of `Aggregation`.

        Raises:
            ValueError: A solver without a flag, or an option that JSON does not know, cannot be written down.
        """
        if not isinstance(self.solver, str):
            raise ValueError(WITHOUT_FLAG.format(self.solver))
        try:
            json.dumps(self.options, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"solver_options {self.options} cannot be written to a configuration: {error}.") from None
        return {
            "solver": self.solver,
            "gradient": self.gradient,
            "solver_options": dict(self.options) or None,
            "on_failure": self.on_failure,
        }


def choose(
    solver: str | Solver,
    gradient: str | None,
    options: Mapping[str, object],
    on_failure: str,
    feasible: FeasibleSet | Callable[[Tensor | None], FeasibleSet],
    before: str = "implicit",
) -> SolverChoice:
    """A choice that has been checked.

    Args:
        solver: A flag of `solvers.available_solvers`, or a solver object.
        gradient: None: that of `before`, if the solver has it, and else "implicit".
        options: Numbers may be of numpy, or tensors without dimensions. With a solver object only those of `solve`.
        on_failure: See `SolverChoice`.
        feasible: The set; one that a function of the caller's makes is not looked at before there is data.
        before: The gradient so far.

    Raises:
        ValueError: There is no such flag, an option is out of its range, or the solver does not take the set or the
            gradient.
        TypeError: The solver does not take one of the options.
    """
    check_choice("on_failure", on_failure, ON_FAILURE)
    if gradient is not None:
        check_choice("gradient", gradient, GRADIENTS)
    options = {name: _plain(name, value) for name, value in options.items()}
    of_solve = {name: options.pop(name) for name in OF_SOLVE if name in options}
    _check_of_solve(of_solve)
    if isinstance(solver, str):
        check_choice("solver", solver, available_solvers())
        method = make_solver(solver, options)
    else:
        method = solver
        solver, options = _named(solver, options)
    name = solver if isinstance(solver, str) else type(solver).__name__
    taken = tuple(flag for flag in method.gradients if flag in GRADIENTS) or ("implicit",)
    if gradient is None:
        gradient = before if before in taken else "implicit"
    if gradient not in taken:
        raise ValueError(
            f"solver {name!r} takes gradient={' or '.join(map(repr, taken))}, but got {gradient!r}; set_solver changes "
            "both at once."
        )
    fixed = feasible() if isinstance(feasible, LearnedTotal) else feasible
    if isinstance(fixed, FeasibleSet):
        method.check_set(fixed)
    return SolverChoice(solver, gradient, {**options, **of_solve}, on_failure, "implicit" in method.gradients)


def as_flag(solver: str | Solver | None, options: Mapping[str, object] | None) -> tuple[Any, dict[str, Any] | None]:
    """What a configuration holds of a solver and its options: a flag, or None, and what may be left out of JSON.

    Raises:
        TypeError: `solver` is neither a flag nor a solver object, or an object is given options of its own.
        ValueError: The class of the object is not registered.
    """
    given = {name: _plain(name, value) for name, value in (options or {}).items()}
    if solver is None or isinstance(solver, str):
        return solver, given or None
    of_solve = {name: given.pop(name) for name in OF_SOLVE if name in given}
    flag, own = _named(solver, given)
    if not isinstance(flag, str):
        raise ValueError(WITHOUT_FLAG.format(solver))
    return flag, {**own, **of_solve} or None


def _named(solver: Solver, options: dict[str, Any]) -> tuple[str | Solver, dict[str, Any]]:
    """A solver object as its flag and options, where its class is registered, and itself where it is not."""
    kind, settings = recipe(solver, options)
    flag = next((name for name in available_solvers() if registered(name) is kind), None)
    if flag is None:
        return solver, {}
    defaults = {entry.name: entry.default for entry in fields(cast(Any, solver))}
    return flag, {name: _plain(name, value) for name, value in settings if value != defaults[name]}


def _plain(name: str, value: object) -> Any:
    """A number of numpy or in a tensor without dimensions as python's."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{name} must be a number, but is a tensor that requires a gradient, which options have not.")
    return plain_number(value)


def _check_of_solve(options: Mapping[str, Any]) -> None:
    """As `solvers.solve` will."""
    tol, max_iter = options.get("tol"), options.get("max_iter")
    if tol is not None and not (isinstance(tol, (int, float)) and 0 < tol < math.inf):
        raise ValueError(f"tol must be positive, but got {tol!r}.")
    if max_iter is not None and (isinstance(max_iter, bool) or not isinstance(max_iter, int) or max_iter < 1):
        raise ValueError(f"max_iter must be a whole number, at least 1, but got {max_iter!r}.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError unless a word is one of those that there are."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, but got {value!r}.")


class ChoosesSolver:
    """What a module has whose problems a solver of the user's choice solves; a class sets `feasible` and `_choice`."""

    feasible: FeasibleSet | Callable[[Tensor | None], FeasibleSet]
    _choice: SolverChoice

    def set_solver(
        self,
        solver: str | Solver,
        gradient: str | None = None,
        *,
        on_failure: str | None = None,
        **options: object,
    ) -> None:
        """Solves by another solver from now on. No solver owns a parameter: nothing else changes.

        Args:
            solver: A flag of `solvers.available_solvers`, or a solver object.
            gradient: "implicit", "unrolled" or "one_step"; None: as before, where the solver has that, else "implicit".
            on_failure: "raise", "warn" or "ignore"; None: as before.
            options: Of the solver, such as `unroll=20`, and `tol` and `max_iter`; those of the former are dropped.

        Raises:
            ValueError: There is no such flag, an option is out of its range, or the solver does not take the set or the
                gradient. Nothing has changed then.
            TypeError: The solver does not take one of the options; likewise.
        """
        self._choice = self.checked_choice(solver, gradient, on_failure, options)

    def checked_choice(
        self, solver: str | Solver, gradient: str | None, on_failure: str | None, options: Mapping[str, object]
    ) -> SolverChoice:
        """What `set_solver` would choose, without choosing it."""
        on_failure = self.on_failure if on_failure is None else on_failure
        return choose(solver, gradient, options, on_failure, self.feasible, self.gradient)

    @property
    def choice(self) -> SolverChoice:
        """The solver with its options and its gradient."""
        return self._choice

    @choice.setter
    def choice(self, choice: SolverChoice) -> None:
        self._choice = choice

    @property
    def solver(self) -> str | Solver:
        """The flag of the solver; assigned, it keeps those options, and the gradient, that the new one has too."""
        return self._choice.solver

    @solver.setter
    def solver(self, solver: str | Solver) -> None:
        before = self._choice.options
        if isinstance(solver, str):
            check_choice("solver", solver, available_solvers())
        known = (*OF_SOLVE, *(solver_options(solver) if isinstance(solver, str) else ()))
        kept = {name: value for name, value in before.items() if name in known}
        with suppress(TypeError, ValueError):  # where it knows their names, but does not take these values
            self._choice = self.checked_choice(solver, None, None, kept)
            return
        kept = {name: value for name, value in kept.items() if name in OF_SOLVE}
        self._choice = self.checked_choice(solver, None, None, kept)

    @property
    def gradient(self) -> str:
        """The flag of the gradient; may be assigned at any time."""
        return self._choice.gradient

    @gradient.setter
    def gradient(self, name: str) -> None:
        self._choice = self.checked_choice(self.solver, name, None, self._choice.options)

    @property
    def solver_options(self) -> Mapping[str, object]:
        """The options of the solver, to be read; may be assigned at any time, as a whole."""
        return MappingProxyType(self._choice.options)

    @solver_options.setter
    def solver_options(self, options: Mapping[str, object] | None) -> None:
        self._choice = self.checked_choice(self.solver, self.gradient, None, options or {})

    @property
    def on_failure(self) -> str:
        """What an answer above its tolerance does; may be assigned at any time."""
        return self._choice.on_failure

    @on_failure.setter
    def on_failure(self, name: str) -> None:
        check_choice("on_failure", name, ON_FAILURE)
        self._choice = replace(self._choice, on_failure=name)
