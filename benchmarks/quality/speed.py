"""Times the models on books side by side, untrained: ``python -m benchmarks.quality.speed --data FOLDER``.

In every round each model takes one step of learning and one of reading, so that what else the machine does meets all
of them alike; they are compared with the plain transformer of the same round.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from transformers import PreTrainedModel

from benchmarks.quality.books import make_untrained
from benchmarks.quality.experiments import CONTEXT, EXPERIMENTS
from maha_opt.run_folder import revision, versions

__all__ = ["SPEED", "Speed", "read_speeds"]

SPEED = Path(__file__).parents[1] / "results" / "quality_speed.json"
BASE = "books: plain"
"""What the others are compared with."""


@dataclass(frozen=True)
class Speed:
    """How fast a model learns (forward and backward), or reads (forward): medians over the rounds.

    Attributes:
        tokens: For each second of the processor.
        of_plain: As a multiple of the plain transformer's in the same round.
    """

    tokens: float
    of_plain: float


def read_speeds(path: Path = SPEED) -> dict[str, tuple[Speed, Speed]]:
    """Of learning and of reading, by "experiment: name" of a model; nothing if they have not been measured."""
    if not path.exists():
        return {}
    seconds: dict[str, list[list[float]]] = json.loads(path.read_text(encoding="utf-8"))["seconds"]

    def speed(name: str, call: int) -> Speed:
        own, base = ([times[call] for times in seconds[model]] for model in (name, BASE))
        return Speed(CONTEXT / median(own), median(b / a for a, b in zip(own, base, strict=True)))

    return {name: (speed(name, 0), speed(name, 1)) for name in seconds}


def main(
    data: Annotated[Path, typer.Option(help="Folder with books/, a text file for each.")],
    rounds: Annotated[int, typer.Option(min=1, help="How often each model is timed.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    output: Annotated[Path, typer.Option(help="Results file, written anew.")] = SPEED,
) -> None:
    """Times every model of the books, and every way to train through an approximation."""
    torch.set_num_threads(threads)
    cells = [cell for name in ("books", "unrolled") for cell in EXPERIMENTS[name]() if cell.seed == 0]
    models = {f"{cell.experiment}: {cell.name}": make_untrained(cell, data / "books") for cell in cells}
    seconds: dict[str, list[list[float]]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        typer.echo(f"round {turn} of {rounds}")
        for name, model in models.items():
            seconds[name].append(_learn_and_read(model))
    record = {
        "seconds": {name: times[1:] for name, times in seconds.items()},  # the first warms up
        "threads": threads,
        "versions": versions(),
        "revision": revision(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    output.write_text(json.dumps(record) + "\n", encoding="utf-8")
    for name, (learning, reading) in read_speeds(output).items():
        typer.echo(f"{name}: learns {learning.of_plain:.2f}, reads {reading.of_plain:.2f} times as fast as plain")


def _learn_and_read(model: PreTrainedModel) -> list[float]:
    """Seconds of the processor for one row: forward and backward, and forward alone."""
    tokens = torch.randint(3, 200, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
    model.zero_grad()

    def read() -> None:
        with torch.no_grad():
            model(tokens)

    return [_seconds(lambda: model(tokens, labels=tokens).loss.backward()), _seconds(read)]


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


if __name__ == "__main__":
    typer.run(main)
