"""Tasks of memory, made of random tokens: associative recall and selective copying."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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

__all__ = ["associative_recall", "run_recall", "selective_copy"]

VOCABULARY = 512
ROWS, TESTED, BATCH, WINDOW = 20_000, 256, 16, 64


def associative_recall(rows: int, length: int, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Multi-query associative recall (Arora et al. 2023): pairs of a key and its value, then every key again.

        k₁ v₁ k₂ v₂ … (noise) … k₃ v₃ … k₁ v₁ …

    Keys are of the lower half of the vocabulary, values of the upper; between the pairs at the start and the queries,
    which stand at random places, there is token 0. Queries are followed by their value, which is to be guessed.

    Returns:
        Tokens and labels, (rows, length) int64; a label is the token itself where it is to be guessed, -100 elsewhere.
    """
    if length < 4 * pairs:
        raise ValueError(f"length must be at least 4·pairs = {4 * pairs}, but got {length}.")
    half = VOCABULARY // 2
    keys = 1 + torch.rand(rows, half - 1, generator=generator).argsort(1)[:, :pairs]
    values = half + torch.randint(half, (rows, pairs), generator=generator)
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    tokens[:, : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    places = 2 * pairs + 2 * torch.rand(rows, length // 2 - pairs, generator=generator).argsort(1)[:, :pairs]
    order = torch.rand(rows, pairs, generator=generator).argsort(1)
    tokens.scatter_(1, places, keys.gather(1, order))
    tokens.scatter_(1, places + 1, values.gather(1, order))
    labels = torch.full_like(tokens, IGNORED).scatter_(1, places + 1, values.gather(1, order))
    return tokens, labels


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
    test_tokens, test_labels = make(TESTED, length, size, generator)
    tokens, labels = make(min(ROWS, cell.steps * BATCH), length, size, generator)

    def rows(tokens: Tensor, labels: Tensor) -> Rows:
        return Rows([{"input_ids": t, "labels": own} for t, own in zip(tokens, labels, strict=True)])

    settings = Settings(
        model=cell.model,
        options=options | {"d_ff": D_FF // 2},
        context=length,
        window=WINDOW,
        steps=cell.steps,
        batch=BATCH,
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
        best = torch.cat([done.model(part).logits[:, :-1].argmax(-1) for part in test_tokens.split(BATCH)])
    asked = test_labels[:, 1:] != IGNORED
    return {
        "parameters": done.parameters,
        "curve": curve_of(done.history),
        "validation": done.metrics["eval_loss"],
        "test_accuracy": float((best == test_labels[:, 1:])[asked].double().mean()),
    }
