"""Trains every model of the experiments and writes down how good it is: ``python -m benchmarks.quality``.

A cell is written to the results file as soon as it is finished, and a later run goes on from there. Several processes
may be started side by side: each takes the next cell that no other is at.
"""

from __future__ import annotations

import datetime
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.quality.experiments import EXPERIMENTS, Cell, cells_of
from benchmarks.quality.results import DEFAULT, append, claimed, read


def main(
    data: Annotated[
        Path, typer.Option(help="Folder with books/ (a text file for each), movie_sentiment.tsv.xz, en_de_help.tsv.xz.")
    ],
    experiments: Annotated[str, typer.Option(help=f"Of {', '.join(EXPERIMENTS)}; with commas.")] = "tuning,books",
    names: Annotated[str, typer.Option(help="Only these models, with semicolons; 'all' for every one.")] = "all",
    seeds: Annotated[str, typer.Option(help="Only these seeds, with commas; 'all' for every one.")] = "all",
    threads: Annotated[int, typer.Option(min=1, help="Threads of this process.")] = 1,
    minutes: Annotated[float, typer.Option(help="Begin no cell after so many minutes.")] = 1e9,
    output: Annotated[Path, typer.Option(help="Results file; a run goes on where the last one stopped.")] = DEFAULT,
) -> None:
    """Trains models on real text, and measures what their fusion is worth."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    import transformers

    from benchmarks.quality.books import run_books
    from benchmarks.quality.memory import run_memory
    from benchmarks.quality.sentences import run_sentiment, run_translation
    from maha_opt.run_folder import revision, versions

    others = {"sentiment": run_sentiment, "translation": run_translation, "recall": run_memory, "copy": run_memory}
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    began = time.monotonic()
    wanted = cells_of(experiments.split(","))
    wanted = [cell for cell in wanted if names == "all" or cell.name in names.split(";")]
    wanted = [cell for cell in wanted if seeds == "all" or str(cell.seed) in seeds.split(",")]
    for cell in wanted:
        with claimed(output, cell.key()) as mine:
            if not mine or any(record["key"] == cell.key() for record in read(output)):
                continue
            if (time.monotonic() - began) / 60 > minutes:
                typer.echo("Time is up; a later run goes on from here.")
                break
            rate = cell.rate or best_rate(cell, read(output))
            if rate is None:
                typer.echo(
                    f"{cell.experiment}: {cell.name}: its learning rates have not all been tried; left for later."
                )
                continue
            typer.echo(f"{cell.experiment}: {cell.name}, seed {cell.seed}, learning rate {rate:g}")
            run = others.get(cell.experiment, run_books)
            measured = run(cell, data, rate, lambda line: typer.echo(f"  {line}"))
            about = {
                "key": cell.key(),
                **asdict(cell),
                "rate": rate,
                "threads": threads,
                "versions": versions() | {"transformers": transformers.__version__},
                "revision": revision(),
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            }
            append(output, about | measured)


def best_rate(cell: Cell, records: list[dict[str, Any]]) -> float | None:
    """The learning rate that was best for a model by the loss on the validation book; None if not all were tried."""
    tried = {other.key() for other in EXPERIMENTS["tuning"]() if other.name == cell.name}
    found = [record for record in records if record["key"] in tried]
    return min(found, key=lambda record: record["validation"])["rate"] if len(found) == len(tried) else None


if __name__ == "__main__":
    typer.run(main)
