"""Random problems against oracles of their own: ``python -m benchmarks.fuzz --problems 1000000 --dtype float32``.

Cells are determined by the seed and their number, and written as they are finished; a later run goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small systems gain nothing from more

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.fuzz import report
from benchmarks.fuzz.cells import DTYPES, Cell, Result, run_cell
from benchmarks.fuzz.families import FAMILIES

console = Console()
DEFAULT_OUTPUT = Path("runs/fuzz")


def cells(seed: int, dtype: str, most: int, families: list[str]) -> Iterator[Cell]:
    """Cells without end, family by family."""
    number = 0
    while True:
        family = list(FAMILIES)[number % len(FAMILIES)]
        if family in families:
            yield Cell(seed, number, dtype, most, family)
        number += 1


def run(cells: Iterator[Cell], problems: int, output: Path) -> list[Result]:
    """Runs cells until there are enough problems or no more cells; those that are finished already are counted."""
    results: list[Result] = []
    count = 0
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("problems", total=problems)
        path = None
        finished: dict[Cell, Result] = {}
        while count < problems:
            cell = next(cells, None)
            if cell is None:
                break
            if path is None:
                path = output / f"{cell.dtype}.jsonl"
                finished = report.read(path)
            result = finished.get(cell)
            if result is None:
                result = run_cell(cell, output / "failures")
                report.append(path, result)
            results.append(result)
            count += result.count
            progress.update(task, completed=count)
    return results


def main(
    problems: Annotated[int, typer.Option(help="How many problems, at least, those of earlier runs counted.")] = 10_000,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    seed: Annotated[int, typer.Option(help="Determines every problem.")] = 0,
    most: Annotated[int, typer.Option(help="Problems in a batch, at most.")] = 4096,
    families: Annotated[str, typer.Option(help="Names with commas between them; all if omitted.")] = "",
    cell: Annotated[int | None, typer.Option(help="Only the cell of this number, and all that is wrong in it.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of results and reproductions.")] = DEFAULT_OUTPUT,
) -> None:
    """Asks, judges, and says what is wrong; exit code 1 if anything is."""
    chosen = [name.strip() for name in families.split(",")] if families else list(FAMILIES)
    unknown = [name for name in chosen if name not in FAMILIES]
    if unknown or dtype not in DTYPES:
        raise typer.BadParameter(f"families are {', '.join(FAMILIES)}; dtypes {', '.join(DTYPES)}.")
    if dtype == "float64" and not np.finfo(np.longdouble).eps < np.finfo(np.float64).eps:
        raise typer.BadParameter("long double is no wider than float64 on this machine, so nothing could be judged.")
    torch.set_num_threads(1)
    if cell is not None:
        family = list(FAMILIES)[cell % len(FAMILIES)]
        results = [run_cell(Cell(seed, cell, dtype, most, family), output / "failures")]
    else:
        results = run(cells(seed, dtype, most, chosen), problems, output)
    _, failures, count = report.total_of(results)
    for table in (report.counts_table, report.families_table):
        console.print(table(results))
    if failures:
        console.print(report.failures_table(results))
    seconds = sum(result.seconds for result in results)
    numbers = f"cells {results[0].cell.number} to {results[-1].cell.number}"
    console.print(f"{count:,} problems in {dtype}, seed {seed}, {numbers}, {seconds:,.0f} s: ", end="")
    console.print("nothing wrong." if not failures else f"{failures.total():,} failing items, see {output}/failures.")
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
