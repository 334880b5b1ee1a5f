"""Who takes part in a comparison: a solver by its flag, with its options and its gradient."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from solvers import FeasibleSet
from solvers.registry import Solver, make_solver, solver_options

Option = int | float | str | bool | None


@dataclass(frozen=True)
class Contender:
    """One way to solve a problem.

    >>> Contender.parse("projected_gradient:unroll=20:gradient=unrolled")
    Contender(solver='projected_gradient', gradient='unrolled', options=(('unroll', 20),))

    Attributes:
        solver: Its flag.
        gradient: How it is differentiated.
        options: Options of the solver.
    """

    solver: str
    gradient: str = "implicit"
    options: tuple[tuple[str, Option], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Contender:
        """Reads ``flag`` or ``flag:option=value:…``, as `spelling` writes it.

        Raises:
            ValueError: If there is no such solver, or it does not take one of the options.
        """
        flag, *words = (word.strip() for word in text.split(":"))
        options: dict[str, Option] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                raise ValueError(f"{text!r} must read solver:option=value, but {word!r} has no '='.")
            options[name.strip()] = _value(value.strip())
        gradient = str(options.pop("gradient", "implicit"))
        contender = cls(flag, gradient, tuple(options.items()))
        try:
            flags = contender.make().gradients
        except TypeError as error:
            raise ValueError(str(error)) from None
        if gradient != "implicit" and gradient not in flags:
            raise ValueError(f"solver {flag!r} has no gradient={gradient!r}.")
        return contender

    @property
    def method(self) -> str:
        """The flag and its options, without the number of steps and the gradient."""
        return ":".join([self.solver] + [f"{name}={value}" for name, value in self.options if name != "unroll"])

    @property
    def label(self) -> str:
        """The flag and what distinguishes it from its defaults, without the number of steps."""
        if self.gradient == "implicit" or (self.gradient == "unrolled" and self.steps):
            return self.method
        return f"{self.method}:gradient={self.gradient}"

    @property
    def spelling(self) -> str:
        """All of it, as `parse` reads it."""
        words = [f"{name}={value}" for name, value in self.options]
        gradient = [] if self.gradient == "implicit" else [f"gradient={self.gradient}"]
        return ":".join([self.solver, *words, *gradient])

    @property
    def steps(self) -> int | None:
        """The fixed number of iterations, or None."""
        steps = dict(self.options).get("unroll")
        return None if steps is None else int(steps)

    @property
    def iterative(self) -> bool:
        """Whether it approaches the solution step by step, and takes their number as an option."""
        return "unrolled" in self.make().gradients and "unroll" in solver_options(self.solver)

    @property
    def one_at_a_time(self) -> bool:
        """Whether it goes through a batch item by item, so that a sample shows its time per problem as well."""
        return getattr(self.make(), "one_at_a_time", False)

    @property
    def differentiable(self) -> bool:
        """Whether its answer carries a gradient."""
        return bool(self.make().gradients)

    def make(self) -> Solver:
        """The solver itself."""
        return make_solver(self.solver, dict(self.options))

    def why_not(self, feasible: FeasibleSet) -> str | None:
        """Why it cannot take this set, in words; None if it can."""
        try:
            self.make().check_set(feasible)
        except ValueError as error:
            return str(error)
        return None


def expand(contenders: Iterable[Contender], steps: Iterable[int]) -> list[Contender]:
    """Adds to every iterative solver itself after a fixed number of steps, differentiated through them.

    >>> [(c.label, c.steps) for c in expand([Contender("pivot"), Contender("mirror_descent")], [5])]
    [('pivot', None), ('mirror_descent', None), ('mirror_descent', 5)]
    """
    steps, expanded = list(steps), []
    for contender in contenders:
        expanded.append(contender)
        if contender.steps is None and contender.gradient == "implicit" and contender.iterative:
            expanded += [
                Contender(contender.solver, "unrolled", (*contender.options, ("unroll", count))) for count in steps
            ]
    return list(dict.fromkeys(expanded))


def _value(text: str) -> Option:
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
