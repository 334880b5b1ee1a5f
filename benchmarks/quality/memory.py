"""Tasks of memory, made of random tokens: associative recall and selective copying."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.quality.experiments import D_FF, RECALL_SIZES, UNSAVED, Cell
from benchmarks.quality.results import curve_of
from benchmarks.quality.sizes import as_large_as_convex
from models.heads import IGNORED
from models.huggingface import MAHAForCausalLM
from models.training.evaluation import guess
from models.training.runs import train
from models.training.settings import Settings
from models.training.tasks import Rows, Task

__all__ = ["DISTANCES", "STAGES", "Memory", "associative_recall", "run_memory", "selective_copy"]

VOCABULARY = 320
STAGES = {64: 1.0, 256: 0.15, 1024: 0.15, 4096: 0.15}
"""Tokens of a row, and steps at this length as a share of those at the first."""

TOKENS_PER_PAIR, KEPT = 32, 16
"""Tokens of a row for each pair that is to be recalled; tokens that are to be copied, at any length."""

LEAD = 16
"""Rows begin with fewer noise tokens than this, so that pairs do not always fall into the same cells of a scale."""

TESTED, WINDOW = 64, 64
"""Rows that are judged by; cells that each scale sees."""

DISTANCES = (0, 64, 256, 1024, 4096)
"""Between which the accuracy of recall is averaged: the finest scale sees 64 tokens, the next, at ratio 4, 256."""


@dataclass(frozen=True)
class Memory:
    """Rows of tokens, some of which follow from what was seen before.

    Attributes:
        tokens: (rows, length) int64.
        labels: The same; the token itself where it is to be guessed, -100 elsewhere.
        ago: (rows, length) int64, how many tokens before one that is to be guessed what it follows from was seen last;
            0 elsewhere, and where it was not.
    """

    tokens: Tensor
    labels: Tensor
    ago: Tensor

    def rows(self) -> Rows:
        """They, as a trainer takes them."""
        return Rows([{"input_ids": t, "labels": own} for t, own in zip(self.tokens, self.labels, strict=True)])


def associative_recall(rows: int, length: int, pairs: int, generator: torch.Generator) -> Memory:
    """Multi-query associative recall (Arora et al. 2023), asked to the end: pairs of a key and its value, then keys.

        0 … 0   k₁ v₁ k₂ v₂ … k_P v_P   k_a v_a k_b v_b …

    Noise, token 0, comes first, up to 15 tokens of it, as many as each row's chance has it. Keys are of the lower half
    of the vocabulary, values of the upper. After the pairs keys come at random, each followed by its value, which is to
    be guessed. It stands next to the key wherever that was seen before, so the distance to the nearest of these places
    says how far a model has to look.

    Raises:
        ValueError: `length` is odd, or leaves no room for a question; or there are not so many keys.
    """
    half = VOCABULARY // 2
    if length % 2 or length < 2 * pairs + LEAD + 1:
        raise ValueError(f"length must be even and above 2·pairs + {LEAD} = {2 * pairs + LEAD}, but got {length}.")
    if pairs >= half:
        raise ValueError(f"pairs must be below {half}, the number of keys, but got {pairs}.")
    keys = 1 + torch.rand(rows, half - 1, generator=generator).argsort(1)[:, :pairs]
    values = half + torch.randint(half, (rows, pairs), generator=generator)
    asked = torch.randint(pairs, (rows, length // 2 - pairs), generator=generator)
    asked = torch.cat((torch.arange(pairs).expand(rows, -1), asked), 1)
    tokens = torch.stack((keys.gather(1, asked), values.gather(1, asked)), 2).flatten(1)
    labels = torch.full_like(tokens, IGNORED)
    labels[:, 2 * pairs + 1 :: 2] = tokens[:, 2 * pairs + 1 :: 2]
    place = torch.arange(length) - torch.randint(LEAD, (rows, 1), generator=generator)
    in_lead, place = place < 0, place.clamp(min=0)

    def behind_noise(x: Tensor, value: int) -> Tensor:
        return x.gather(1, place).masked_fill(in_lead, value)

    return Memory(behind_noise(tokens, 0), behind_noise(labels, IGNORED), behind_noise(_since_the_key(tokens), 0))


def _since_the_key(tokens: Tensor) -> Tensor:
    """How many tokens ago the key before each value was seen last, (rows, length) int64; 0 where it was not."""
    keys = tokens[:, ::2]
    order = keys.argsort(dim=1, stable=True)  # a key's places one after the other
    same = keys.gather(1, order).diff(dim=1) == 0
    ago = torch.zeros_like(keys)
    ago.scatter_(1, order[:, 1:], torch.where(same, 2 * order.diff(dim=1), 0))
    return torch.stack((torch.zeros_like(ago), ago), 2).flatten(1)


def selective_copy(rows: int, length: int, kept: int, generator: torch.Generator) -> Memory:
    """Selective copying (Gu and Dao 2023): some tokens among noise, to be said again in their order at the end.

    Noise is token 0; token 1 stands before the copy.

    Raises:
        ValueError: `length` leaves no room for them.
    """
    if length < 3 * kept + 1:
        raise ValueError(f"length must be at least 3·kept + 1 = {3 * kept + 1}, but got {length}.")
    values = 2 + torch.randint(14, (rows, kept), generator=generator)
    places = torch.rand(rows, length - kept - 1, generator=generator).argsort(1)[:, :kept].sort(1).values
    tokens = torch.zeros(rows, length, dtype=torch.int64).scatter_(1, places, values)
    tokens[:, -kept - 1], tokens[:, -kept:] = 1, values
    labels = torch.full_like(tokens, IGNORED)
    labels[:, -kept:] = values
    ago = torch.zeros_like(tokens)
    ago[:, -kept:] = torch.arange(length - kept, length) - places
    return Memory(tokens, labels, ago)


def run_memory(cell: Cell, data: Path, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The share of the tokens that were to be remembered and were guessed, at every length.

    A model learns the task in short rows first, goes on in longer ones, and is judged after each length.
    """
    del data
    generator = torch.Generator().manual_seed(cell.seed)
    memory = TASKS[cell.experiment]
    model: PreTrainedModel | None = None
    record: dict[str, Any] = {}
    for length, share in STAGES.items():
        test = memory(TESTED, length, generator)
        steps, batch = round(cell.steps * share), max(1, cell.batch * min(STAGES) // length)
        learned = memory(steps * batch, length, generator)  # none is seen twice
        settings = Settings(
            model=cell.model,
            options=cell.options,
            context=max(STAGES),
            window=WINDOW,
            steps=steps,
            batch=batch,
            learning_rate=rate,
            evaluate_every=steps,
            seed=cell.seed,
            **UNSAVED,
        )
        settings = as_large_as_convex(settings, RECALL_SIZES, D_FF // 2, MAHAForCausalLM, VOCABULARY)
        task = Task(learned.rows(), test.rows(), MAHAForCausalLM)
        with tempfile.TemporaryDirectory() as folder:
            done = train(settings, Path(folder) / "run", say=say, task=task, start=model, vocab_size=VOCABULARY)
        model = done.model
        record |= {"parameters": done.parameters, str(length): {"curve": curve_of(done.history)} | judge(model, test)}
    return record


def judge(model: PreTrainedModel, test: Memory) -> dict[str, Any]:
    """The share of the labels that is guessed: of all, and of those that follow from what is so many tokens back."""
    labels, ago = test.labels[:, 1:], test.ago[:, 1:]
    right = guess(model, test.tokens).best == labels
    asked = labels != IGNORED
    parts = [asked & (ago > low) & (ago <= high) for low, high in pairwise(DISTANCES)]
    return {
        "test_accuracy": float(right[asked].double().mean()),
        "test_by_distance": [float(right[own].double().mean()) if bool(own.any()) else None for own in parts],
    }


TASKS: dict[str, Callable[[int, int, torch.Generator], Memory]] = {
    "recall": lambda rows, length, generator: associative_recall(rows, length, length // TOKENS_PER_PAIR, generator),
    "copy": lambda rows, length, generator: selective_copy(rows, length, KEPT, generator),
}
