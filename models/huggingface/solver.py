"""The solver of a model's fusions in its configuration, so that a model is loaded with the one it was saved with."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from maha_opt.switching import set_solver, solver_config
from solvers.registry import Solver

__all__ = ["SavesSolver"]


class SavesSolver(PreTrainedModel):
    """A model whose configuration says who solves its fusions."""

    def set_solver(
        self, solver: str | Solver, gradient: str | None = None, *, on_failure: str | None = None, **options: object
    ) -> None:
        """Solves all fusions by another solver from now on, also when the model is saved and loaded.

        Args:
            solver: This and all others: see `models.MAHATransformer.set_solver`.
            gradient: See there.
            on_failure: See there.
            options: See there.

        Raises:
            ValueError: As there.
            TypeError: Likewise.
        """
        set_solver(self, solver, gradient, on_failure=on_failure, **options)

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """See `transformers.PreTrainedModel`.

        Raises:
            ValueError: The configuration cannot say who solves the fusions: they differ, or the class of the solver is
                not registered.
        """
        for name, value in solver_config(self).items():
            setattr(self.config, name, value)
        super().save_pretrained(*arguments, **options)
