"""Trains and judges one language model on books, split by whole book."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.quality.experiments import BATCH, CONTEXT, D_FF, FUSIONS, LEVELS, SCALES, SIZES, WINDOW, Cell
from models.training.evaluation import guess, solved_by
from models.training.presets import make_config
from models.training.runs import train
from models.training.settings import Settings
from models.training.texts import text_files
from models.training.tokens import TokenBlocks, make_tokenizer

__all__ = ["BORDERS", "Books", "run_books"]

VALIDATION = ("persuasion",)
TEST = ("the_war_of_the_worlds", "northanger_abbey")
BORDERS = [0, 16, 64, 256, 512, 1024]
"""Positions in the context between which the loss is averaged."""

JUDGED = 48
"""Blocks of each book that the loss is taken of, spread over the book."""


@dataclass(frozen=True)
class Books:
    """A folder of books, by their part.

    Attributes:
        folder: With one text file, plain or compressed, for each.
    """

    folder: Path

    def files(self, part: str) -> list[Path]:
        """The books of a part, "train", "validation" or "test"."""
        names = {"validation": VALIDATION, "test": TEST}
        chosen = []
        for file in text_files([self.folder]):
            own = next((name for name, books in names.items() if file.name.startswith(books)), "train")
            chosen += [file] if own == part else []
        if not chosen:
            raise ValueError(f"{self.folder} has no book for the part {part!r}.")
        return chosen


def run_books(cell: Cell, data: Path, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains the model of a cell and judges it: what goes into the results file."""
    books = Books(data / "books")
    settings = settings_of(cell, books, rate)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = train(settings, Path(folder) / "run", say=say)
    seconds = time.perf_counter() - began
    record: dict[str, Any] = {
        "parameters": done.parameters,
        "d_ff": settings.options["d_ff"],
        "tokens": settings.steps * BATCH * CONTEXT,
        "seconds": seconds,
        "curve": [
            [entry["step"], entry.get("loss"), entry.get("eval_loss")]
            for entry in done.history
            if "loss" in entry or "eval_loss" in entry
        ],
        "validation": bits(done.metrics["eval_loss"]),
    }
    if cell.experiment == "tuning":
        return record
    model = done.model
    record["flops_per_token"] = flops(model) / CONTEXT
    record |= throughput(model)
    test = torch.cat([blocks(str(file)) for file in books.files("test")])
    guesses = guess(model, test)
    record["test"] = bits(guesses.loss)
    record["test_by_position"] = [bits(loss) for loss in guesses.by_position(BORDERS)]
    if cell.experiment == "unrolled":
        with solved_by(model, "pivot"):
            record["test_exact"] = bits(guess(model, test).loss)
    return record


def settings_of(cell: Cell, books: Books, rate: float) -> Settings:
    """The run of a cell, as wide as makes its parameters as many as those of the convex model."""
    options = cell.options | {"d_ff": D_FF}
    settings = Settings(
        model=cell.model,
        options=options,
        context=CONTEXT,
        window=WINDOW,
        levels=LEVELS,
        texts=tuple(map(str, books.files("train"))),
        validation=tuple(map(str, books.files("validation"))),
        steps=cell.steps,
        batch=BATCH,
        learning_rate=rate,
        evaluate_every=cell.steps // 4,
        save_every=cell.steps // 10 * 10,
        log_every=5,
        most_blocks=JUDGED,
        seed=cell.seed,
        device="cpu",
        trainer={"save_strategy": "no", "report_to": "none"},
    )
    convex = replace(settings, model="maha", options=SIZES | SCALES | FUSIONS["convex"] | {"d_ff": D_FF})
    wanted, own = parameters(convex), parameters(settings)
    step = parameters(replace(settings, options=options | {"d_ff": D_FF + 1})) - own
    d_ff = D_FF + round((wanted - own) / step)
    return replace(settings, options=options | {"d_ff": d_ff})


def parameters(settings: Settings) -> int:
    """How many parameters the model of a run has, without making it."""
    config = make_config(
        settings.model,
        context=settings.context,
        window=settings.window,
        levels=settings.levels,
        vocab_size=len(make_tokenizer()),
        **settings.options,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


@lru_cache(maxsize=4)
def blocks(file: str) -> Tensor:
    """Blocks of a book, spread evenly over it."""
    from maha_opt.text import read_text

    tokens = TokenBlocks(make_tokenizer(), [read_text(file)], CONTEXT).tokens
    return tokens[torch.linspace(0, len(tokens) - 1, min(JUDGED, len(tokens))).long()]


def flops(model: PreTrainedModel) -> int:
    """Operations of a forward pass over one block. Full attention is counted over all pairs; solvers are not."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, CONTEXT, dtype=torch.long))
    return counter.get_total_flops()


def throughput(model: PreTrainedModel, repeats: int = 5) -> dict[str, float]:
    """Tokens for each second of processor time, in training (forward and backward) and in reading (forward)."""
    tokens = torch.randint(3, 200, (2, CONTEXT), generator=torch.Generator().manual_seed(0))

    def learn() -> None:
        model(tokens, labels=tokens).loss.backward()

    def read() -> None:
        with torch.no_grad():
            model(tokens)

    found = {}
    for name, call in (("trained_per_second", learn), ("read_per_second", read)):
        call()
        times = []
        for _ in range(repeats):
            began = time.process_time()
            call()
            times.append(time.process_time() - began)
        found[name] = tokens.numel() / sorted(times)[repeats // 2]
    model.zero_grad()
    return found


def bits(nats: float) -> float:
    """Nats per byte in bits per byte; tokens are bytes here."""
    return nats / math.log(2)
