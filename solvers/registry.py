"""The solvers by their flags. A new solver is one file and one line here, or one call of `register_solver`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import ClassVar, Protocol, cast

import numpy as np
from torch import Tensor

from solvers.baselines import Mean, Softmax
from solvers.best_response import BestResponse
from solvers.conic import CvxpyLayers
from solvers.mirror_descent import MirrorDescent
from solvers.pivot import Pivot
from solvers.projected_gradient import ProjectedGradient
from solvers.scipy_oracle import Scipy
from solvers.sets import FeasibleSet
from solvers.standard_form import StandardForm


class Solver(Protocol):
    """What a solver is: an immutable record of options that can be called with a problem.

    It treats the items of a batch independently, never mutates its input, and knows nothing of gradient modes.

    Attributes:
        gradients: The gradient flags that make sense for it. ``"implicit"``: its answer approximates the solution.
            ``"unrolled"``: it is made of differentiable operations. ``"one_step"``: it has a differentiable method
            ``one_step(problem, w)``. ``("own",)``: its answer carries a derivative of its own. ``()``: none.
    It may have attributes ``accuracy``, the least relative tolerance that it is asked for by default, and
    ``one_at_a_time``, whether it goes through a batch item by item. The first line of its docstring says what it is.
    """

    gradients: ClassVar[tuple[str, ...]]

    @property
    def to_tolerance(self) -> bool:
        """Whether it claims to meet the tolerance, so that an answer above it is a failure."""
        ...

    def check_set(self, feasible: FeasibleSet) -> None:
        """Raises ValueError, naming the sets that it takes, if it cannot take this one."""
        ...

    def __call__(self, problem: StandardForm, tol: float, max_iter: int | None) -> tuple[Tensor, Tensor]:
        """Weights ``(L, B)`` and the number of iterations ``(B,)``."""
        ...


class Differentiable(Solver, Protocol):
    """A solver that takes ``gradient="one_step"``."""

    def one_step(self, problem: StandardForm, w: Tensor) -> Tensor:
        """The next iterate after ``w``, differentiable in the tensors of ``problem``; ``(L, B)``."""
        ...


_SOLVERS: dict[str, Callable[..., Solver]] = {
    "pivot": Pivot,
    "cvxpylayers": CvxpyLayers,
    "best_response": BestResponse,
    "projected_gradient": ProjectedGradient,
    "mirror_descent": MirrorDescent,
    "scipy": Scipy,
    "softmax": Softmax,
    "mean": Mean,
}


def available_solvers() -> tuple[str, ...]:
    """The flags that `solve` takes.

    >>> available_solvers()[:2]
    ('pivot', 'cvxpylayers')
    """
    return tuple(_SOLVERS)


def register_solver(name: str, solver: Callable[..., Solver]) -> None:
    """Makes a solver available under a flag.

    Args:
        name: The flag.
        solver: A class, or any callable that takes the options of `solve` as keywords and returns a `Solver`.

    Raises:
        ValueError: If the flag is taken.
    """
    if name in _SOLVERS:
        raise ValueError(f"A solver named {name!r} is registered already.")
    _SOLVERS[name] = solver


def registered(name: str) -> Callable[..., Solver]:
    """What makes the solver under a flag.

    Raises:
        ValueError: If there is no such solver.
    """
    if name not in _SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(map(repr, _SOLVERS))}, but got {name!r}.")
    return _SOLVERS[name]


def solver_options(name: str) -> tuple[str, ...]:
    """The options that the solver under a flag takes.

    >>> solver_options("softmax")
    ('temperature',)

    Raises:
        ValueError: If there is no such solver.
    """
    return tuple(inspect.signature(registered(name)).parameters)


def about_solver(name: str) -> str:
    """What the solver under a flag is: the first line of its docstring.

    Raises:
        ValueError: If there is no such solver.
    """
    return (inspect.getdoc(registered(name)) or "").partition("\n")[0]


def make_solver(kind: Hashable, options: Mapping[str, object]) -> Solver:
    """The solver under a flag, or of a class, with its options.

    Numbers of numpy and tensors without dimensions are taken as the numbers that they hold.

    Raises:
        ValueError: If there is no such solver.
        TypeError: If it does not take one of the options.
    """
    make = registered(kind) if isinstance(kind, str) else cast(Callable[..., Solver], kind)
    try:
        return make(**{name: plain_number(value) for name, value in options.items()})
    except TypeError:
        known = tuple(inspect.signature(make).parameters)
        unknown = [option for option in options if option not in known]
        if not unknown:
            raise
        raise TypeError(
            f"solver {kind!r} does not take {', '.join(unknown)}; its options are {', '.join(known) or 'none'}."
        ) from None


def recipe(solver: str | Solver, options: Mapping[str, object]) -> tuple[Hashable, tuple[tuple[str, object], ...]]:
    """What `make_solver` makes the solver from: its flag or its class, and its options.

    Args:
        solver: A flag, or a solver: a dataclass whose fields are its options.
        options: Options that go with a flag.

    Raises:
        TypeError: If ``solver`` is neither, an object is given options, or an option can be changed (it has no hash).
    """
    if isinstance(solver, str):
        for name, value in options.items():
            if value.__hash__ is None:
                raise TypeError(f"{name} must be a number, a word or another constant, but got {value!r}.")
        return solver, tuple((name, plain_number(value)) for name, value in options.items())
    if not is_dataclass(solver) or isinstance(solver, type) or not callable(solver):
        raise TypeError(f"solver must be a flag such as 'pivot' or a solver such as Pivot(), but got {solver!r}.")
    if options:
        raise TypeError(f"{type(solver).__name__} has its options already, but {', '.join(options)} were given too.")
    return type(solver), tuple((f.name, getattr(solver, f.name)) for f in fields(solver) if f.init)


def plain_number(value: object) -> object:
    """Python's own number for one of numpy's or a tensor without dimensions; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    return value
