"""Tasks of memory, made of random tokens: associative recall and selective copying."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.experiments import D_FF, UNSAVED, Cell
from benchmarks.quality.results import curve_of
from models.heads import IGNORED
from models.huggingface import MAHAForCausalLM
from models.training.runs import train
from models.training.settings import Settings
from models.training.tasks import Rows, Task

__all__ = ["DISTANCES", "associative_recall", "distances", "run_recall", "selective_copy"]

VOCABULARY = 512
TESTED, STEP_TOKENS, WINDOW = 64, 8192, 64
"""Rows that are judged by; tokens of a step, whatever the length of a row; cells that each scale sees."""

DISTANCES = (0, 64, 256, 1024, 4096)
"""Between which the accuracy of recall is averaged: the finest scale sees 64 tokens, the next, at ratio 4, 256."""


def associative_recall(rows: int, length: int, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Multi-query associative recall (Arora et al. 2023), asked to the end: pairs of a key and its value, then keys.

        k₁ v₁ k₂ v₂ … k_P v_P   k_a v_a k_b v_b …

    Keys are of the lower half of the vocabulary, values of the upper. After the pairs keys come at random, each
    followed by its value, which is to be guessed. It stands next to the key wherever that was seen before, so the
    distance to the nearest of these places (`distances`) says how far a model has to look.

    Returns:
        Tokens and labels, (rows, length) int64; a label is the token itself where it is to be guessed, -100 elsewhere.

    Raises:
        ValueError: `length` is odd, or leaves no room for a question; or there are not so many keys.
    """
    half = VOCABULARY // 2
    if length % 2 or length <= 2 * pairs:
        raise ValueError(f"length must be even and above 2·pairs = {2 * pairs}, but got {length}.")
    if pairs >= half:
        raise ValueError(f"pairs must be below {half}, the number of keys, but got {pairs}.")
    keys = 1 + torch.rand(rows, half - 1, generator=generator).argsort(1)[:, :pairs]
    values = half + torch.randint(half, (rows, pairs), generator=generator)
    asked = torch.randint(pairs, (rows, length // 2 - pairs), generator=generator)
    asked = torch.cat((torch.arange(pairs).expand(rows, -1), asked), 1)
    tokens = torch.stack((keys.gather(1, asked), values.gather(1, asked)), 2).flatten(1)
    labels = torch.full_like(tokens, IGNORED)
    labels[:, 2 * pairs + 1 :: 2] = tokens[:, 2 * pairs + 1 :: 2]
    return tokens, labels


def distances(tokens: Tensor) -> Tensor:
    """How many tokens ago the key before each value was seen last, (rows, length) int64; 0 where it was not.

    Args:
        tokens: as `associative_recall` makes them.
    """
    keys = tokens[:, ::2]
    order = keys.argsort(dim=1, stable=True)  # a key's places one after the other
    same = keys.gather(1, order).diff(dim=1) == 0
    ago = torch.zeros_like(keys)
    ago.scatter_(1, order[:, 1:], torch.where(same, 2 * order.diff(dim=1), 0))
    return torch.stack((torch.zeros_like(ago), ago), 2).flatten(1)


def selective_copy(rows: int, length: int, kept: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Selective copying (Gu and Dao 2023): some tokens among noise, to be said again in their order at the end.

    Noise is token 0; token 1 stands before the copy.

    Returns:
        As `associative_recall`.
    """
    if length < 3 * kept + 1:
        raise ValueError(f"length must be at least 3·kept + 1 = {3 * kept + 1}, but got {length}.")
    values = 2 + torch.randint(14, (rows, kept), generator=generator)
    places = torch.rand(rows, length - kept - 1, generator=generator).argsort(1)[:, :kept].sort(1).values
    tokens = torch.zeros(rows, length, dtype=torch.int64).scatter_(1, places, values)
    tokens[:, -kept - 1], tokens[:, -kept:] = 1, values
    labels = torch.full_like(tokens, IGNORED)
    labels[:, -kept:] = values
    return tokens, labels


def run_recall(cell: Cell, data: Path, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The share of the tokens that were to be remembered and were guessed."""
    del data
    options = dict(cell.options)
    kind, length, size = options.pop("task"), options.pop("length"), options.pop("size")
    make = {"recall": associative_recall, "copy": selective_copy}[kind]
    generator = torch.Generator().manual_seed(cell.seed)
    batch = STEP_TOKENS // length
    test_tokens, test_labels = make(TESTED, length, size, generator)
    tokens, labels = make(cell.steps * batch, length, size, generator)  # none is seen twice

    def rows(tokens: Tensor, labels: Tensor) -> Rows:
        return Rows([{"input_ids": t, "labels": own} for t, own in zip(tokens, labels, strict=True)])

    settings = Settings(
        model=cell.model,
        options=options | {"d_ff": D_FF // 2},
        context=length,
        window=WINDOW,
        steps=cell.steps,
        batch=batch,
        learning_rate=rate,
        evaluate_every=cell.steps // 40 * 10,
        save_every=10,
        seed=cell.seed,
        **UNSAVED,
    )
    task = Task(rows(tokens, labels), rows(test_tokens[:32], test_labels[:32]), MAHAForCausalLM)
    with tempfile.TemporaryDirectory() as folder:
        done = train(settings, Path(folder) / "run", say=say, task=task, vocab_size=VOCABULARY)
    done.model.eval()
    with torch.no_grad():
        best = torch.cat([done.model(part).logits[:, :-1].argmax(-1) for part in test_tokens.split(batch)])
    asked = test_labels[:, 1:] != IGNORED
    right = best == test_labels[:, 1:]
    record = {
        "parameters": done.parameters,
        "curve": curve_of(done.history),
        "validation": done.metrics["eval_loss"],
        "test_accuracy": float(right[asked].double().mean()),
    }
    if kind == "recall":
        ago = distances(test_tokens)[:, 1:]
        parts = [asked & (ago > low) & (ago <= high) for low, high in pairwise(DISTANCES)]
        record["test_by_distance"] = [float(right[own].double().mean()) if bool(own.any()) else None for own in parts]
    return record
