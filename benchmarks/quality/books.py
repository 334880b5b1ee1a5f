"""Trains and judges one language model on books, split by whole book."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.quality.experiments import CONTEXT, D_FF, LEVELS, SIZES, UNSAVED, WINDOW, Cell
from benchmarks.quality.results import curve_of
from benchmarks.quality.sizes import as_large_as_convex
from maha_opt.text import novel, read_text
from models.training.evaluation import bits_per_byte, guess, solved_by
from models.training.presets import make_config
from models.training.runs import train
from models.training.settings import Settings
from models.training.texts import text_files
from models.training.tokens import TokenBlocks, make_tokenizer

__all__ = ["BORDERS", "make_untrained", "run_books"]

VALIDATION = ("persuasion",)
TEST = ("the_war_of_the_worlds",)
NOVEL = "northanger_abbey"
"""The novel that comes with the package, which is judged by too."""

BORDERS = [0, 16, 64, 256, 512, 1024]
"""Positions in the context between which the loss is averaged."""

JUDGED = 48
"""Blocks of each book that the loss is taken of, spread over the book."""


def files(folder: Path, part: str) -> list[Path]:
    """The books of a part, "train", "validation" or "test", in a folder with one text file for each.

    Raises:
        ValueError: There is none.
    """
    names = {"validation": VALIDATION, "test": TEST}
    chosen = []
    for file in text_files([folder]):
        own = next((name for name, books in names.items() if file.name.startswith(books)), "train")
        chosen += [file] if own == part else []
    if not chosen:
        raise ValueError(f"{folder} has no book for the part {part!r}.")
    return chosen


def run_books(cell: Cell, data: Path, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains the model of a cell and judges it: what goes into the results file."""
    books = data / "books"
    settings = settings_of(cell, books, rate)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = train(settings, Path(folder) / "run", say=say)
    seconds = time.perf_counter() - began
    record: dict[str, Any] = {
        "parameters": done.parameters,
        "d_ff": settings.options["d_ff"],
        "tokens": settings.steps * settings.batch * CONTEXT,
        "seconds": seconds,
        "curve": curve_of(done.history),
        "validation": bits_per_byte(done.metrics["eval_loss"]),
    }
    if cell.experiment == "tuning":
        return record
    model = done.model
    record["flops_per_token"] = flops(model) / CONTEXT
    tests = {name: blocks(read_text(file)) for name, file in zip(TEST, files(books, "test"), strict=True)}
    tests[NOVEL] = blocks(novel())
    every = torch.cat([*tests.values()])
    guesses = guess(model, every)
    record["test"] = bits_per_byte(guesses.loss)
    record["test_by_position"] = [bits_per_byte(loss) for loss in guesses.by_position(BORDERS)]
    by_book = guesses.losses.split([len(rows) for rows in tests.values()])
    record["test_by_book"] = {name: bits_per_byte(float(own.mean())) for name, own in zip(tests, by_book, strict=True)}
    if cell.experiment == "unrolled":
        with solved_by(model, "pivot"):
            record["test_exact"] = bits_per_byte(guess(model, every).loss)
    return record


def settings_of(cell: Cell, books: Path, rate: float) -> Settings:
    """The run of a cell, as wide as makes its parameters as many as those of the convex model."""
    settings = Settings(
        model=cell.model,
        options=cell.options,
        context=CONTEXT,
        window=WINDOW,
        levels=LEVELS,
        texts=tuple(map(str, files(books, "train"))),
        validation=tuple(map(str, files(books, "validation"))),
        steps=cell.steps,
        batch=cell.batch,
        learning_rate=rate,
        evaluate_every=cell.steps // 2,
        log_every=5,
        most_blocks=JUDGED,
        seed=cell.seed,
        **UNSAVED,
    )
    make = AutoModelForCausalLM.from_config
    return as_large_as_convex(settings, SIZES, D_FF, make, len(make_tokenizer()))


def make_untrained(cell: Cell, books: Path) -> PreTrainedModel:
    """The model of a cell with first weights."""
    settings = settings_of(cell, books, rate=1.0)
    sizes = {"context": CONTEXT, "window": WINDOW, "levels": LEVELS, "vocab_size": len(make_tokenizer())}
    config = make_config(settings.model, **sizes, **settings.options)
    torch.manual_seed(cell.seed)
    return AutoModelForCausalLM.from_config(config)


def blocks(book: bytes) -> Tensor:
    """Blocks of a book, spread evenly over it."""
    return TokenBlocks(make_tokenizer(), [book], CONTEXT).spread(JUDGED)


def flops(model: PreTrainedModel) -> int:
    """Operations of a forward pass over one block. Full attention is counted over all pairs; solvers are not."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, CONTEXT, dtype=torch.long))
    return counter.get_total_flops()
