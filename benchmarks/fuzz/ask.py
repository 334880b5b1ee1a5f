"""What the solvers say about a batch: weights, status, gradients, and every word of warning."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.fuzz.batches import Array, Batch, Truth
from solvers import Status, solve

SOLVED = int(Status.SOLVED)


@dataclass(frozen=True)
class Answer:
    """What came back; arrays of ``(B, …)``, in the dtype that is tested.

    Attributes:
        weights: ``(B, L)``.
        status: ``(B,)``, of `solvers.Status`.
        gradients: ``name → (B, …)`` for every tensor of the batch.
        warned: What was warned of in the backward pass.
        error: The exception instead of an answer, and whether it is a documented one.
        documented: Whether an exception is what the documentation promises for such a batch.
    """

    weights: Array
    status: Array
    gradients: dict[str, Array]
    warned: tuple[str, ...] = ()
    error: str = ""
    documented: bool = False

    def select(self, items: Array) -> Answer:
        """The answers to the items at the given indices."""
        gradients = {name: value[items] for name, value in self.gradients.items()}
        return Answer(self.weights[items], self.status[items], gradients, self.warned)


def ask(batch: Batch, *, alone: bool = False) -> Answer:
    """Solves a batch and differentiates it; ``alone`` leaves the batch dimension of a single item out."""
    leaves = {name: (value[0] if alone else value).clone().requires_grad_() for name, value in batch.leaves().items()}
    stated = batch if batch.mask is None or not alone else replace(batch, mask=batch.mask[0])
    cotangent = batch.cotangent[0] if alone else batch.cotangent
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            solution = solve(stated.problem(leaves))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = torch.autograd.grad(solution.weights, list(leaves.values()), cotangent, allow_unused=True)
    except Exception as error:  # whatever it is, it is reported: that is what a fuzzer is for
        hopeless = bool(np.isin(batch.truth, (Truth.FAULTY, Truth.INFEASIBLE)).all())
        nothing = np.zeros(0)
        said = f"{type(error).__name__}: {error}"
        return Answer(nothing, nothing, {}, (), said, hopeless and isinstance(error, ValueError))
    gradients = {
        name: np.zeros(tuple(leaf.shape), _numpy(leaf)) if gradient is None else gradient.numpy()
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
    weights, status = solution.weights.detach().numpy(), solution.status.numpy()
    if alone:
        weights, status = weights[None], status[None]
        gradients = {name: value[None] for name, value in gradients.items()}
    return Answer(weights, status, gradients, tuple(str(warning.message) for warning in caught))


def _numpy(tensor: torch.Tensor) -> type:
    return np.float64 if tensor.dtype == torch.float64 else np.float32
