"""The solver of all fusions of a model at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from maha_opt.aggregation_base import fusions_of
from solvers.registry import Solver


def set_solver(
    model: nn.Module,
    solver: str | Solver,
    gradient: str | None = None,
    *,
    on_failure: str | None = None,
    **options: object,
) -> None:
    """`Aggregation.set_solver` of every fusion in a model: of all, or where one refuses it of none.

    Raises:
        ValueError: As there, or there is no fusion in the model.
        TypeError: As there.
    """
    fusions = fusions_of(model)
    if not fusions:
        raise ValueError(f"{type(model).__name__} has no fusion for a solver to solve.")
    choices = [fusion.checked_choice(solver, gradient, on_failure, options) for fusion in fusions]
    for fusion, choice in zip(fusions, choices, strict=True):
        fusion.choice = choice


@contextmanager
def solver_within(
    model: nn.Module, solver: str | Solver, gradient: str, *, on_failure: str | None = None, **options: object
) -> Iterator[None]:
    """Within it, every fusion of a model is solved by another solver; afterwards by its own again."""
    fusions = fusions_of(model)
    own = [fusion.choice for fusion in fusions]
    try:
        for fusion in fusions:
            fusion.choice = fusion.checked_choice(solver, gradient, on_failure, options)
        yield
    finally:
        for fusion, choice in zip(fusions, own, strict=True):
            fusion.choice = choice


def solver_config(model: nn.Module) -> dict[str, Any]:
    """What a configuration has to say for the model to be made with the solver that it has; {} without a fusion.

    Raises:
        ValueError: It cannot say it: the fusions differ, or see `SolverChoice.as_config`.
    """
    configs = [fusion.choice.as_config() for fusion in fusions_of(model)]
    for config in configs[1:]:
        if config != configs[0]:
            raise ValueError(
                f"a configuration names one solver for all fusions, but these have {configs[0]} and {config}; the "
                "model's set_solver gives them the same."
            )
    return configs[0] if configs else {}


class HasFusions:
    """What a module has that holds fusions."""

    def set_solver(
        self, solver: str | Solver, gradient: str | None = None, *, on_failure: str | None = None, **options: object
    ) -> None:
        """Solves all fusions by another solver from now on. No solver owns a parameter: nothing else changes.

        Args:
            solver: one of `solvers.available_solvers`, or a solver object.
            gradient: "implicit", "unrolled" or "one_step"; None: as before, where the solver has that, else "implicit".
            on_failure: "raise", "warn" or "ignore"; None: as before.
            options: of the solver, such as `unroll=20`, and `tol` and `max_iter`; those of the former are dropped.

        Raises:
            ValueError: there is no such flag, an option is out of its range, or the solver does not take the set or the
                gradient. Nothing has changed then.
            TypeError: the solver does not take one of the options; likewise.
        """
        assert isinstance(self, nn.Module)
        set_solver(self, solver, gradient, on_failure=on_failure, **options)
