"""What ``maha-opt sweep`` does, apart from reading its options."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from maha_opt import report
from maha_opt.commands.options import FAILED, parse_list, parse_solvers, parse_steps
from maha_opt.interrupts import INTERRUPTED
from maha_opt.run_folder import new_folder, remove_if_empty
from maha_opt.summary import summarise
from maha_opt.validation import grid, sweep
from maha_opt.validation.comparison import as_cells
from maha_opt.validation.sweep_folder import CELLS, JSON, TABLE


@dataclass(frozen=True)
class Request:
    """The options of the command, as ``maha-opt sweep --help`` describes them."""

    solvers: str
    gradients: str
    seeds: int
    scales: str
    condition: str
    coupling: str
    tie_distance: str
    feasible: str
    price: str
    steps: str
    problems: int
    reference: int
    max_iter: int
    engine: str
    jobs: int | None
    output: Path | None


def run(request: Request, console: Console, errors: Console) -> int:
    """Computes what is missing, prints and writes everything.

    Returns:
        The exit code: 0; 1 if a cell failed; 130 if the user interrupted.

    Raises:
        ValueError, OSError, RuntimeError: If an option, the folder or the cluster is of no use.
    """
    problems = grid(
        feasible=parse_list("--feasible", request.feasible, str),
        scales=parse_list("--scales", request.scales, int),
        condition=parse_list("--condition", request.condition, float),
        coupling=parse_list("--coupling", request.coupling, float),
        tie_distance=parse_list("--tie-distance", request.tie_distance, float),
        price=parse_list("--price", request.price, float),
        problems=[request.problems],
    )
    solvers = [contender.spelling for contender in parse_solvers(request.solvers)]
    gradients, steps = parse_list("--gradients", request.gradients, str), [*parse_steps(request.steps), None]
    folder = request.output or new_folder("sweep")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task(f"{len(problems)} settings, {request.seeds} seeds", total=None)
            table = sweep(
                folder,
                problems,
                solvers,
                gradients,
                request.seeds,
                steps=steps,
                covered=request.reference,
                max_iter=request.max_iter,
                engine=request.engine,
                jobs=request.jobs,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        done = len(list((folder / CELLS).glob("*.parquet")))
        again = f"the same command with --output {folder} goes on"
        errors.print(f"Interrupted after {done} cells; {again}.", highlight=False, soft_wrap=True, markup=False)
        return INTERRUPTED
    finally:
        if request.output is None:
            remove_if_empty(folder)
    rows = summarise({**cell, "kind": "all"} for cell in as_cells(table))
    seeds = f"{request.seeds} seed{'' if request.seeds == 1 else 's'}"
    about = f"{len(problems)} settings together: {seeds}"
    console.print(report.table(rows, report.title(rows, about)))
    console.print("\n".join(["", *report.notes(rows)]), highlight=False)
    failed = int((table["status"] == "failed").sum())
    console.print(f"{failed} rows failed." if failed else "Complete.")
    console.print(f"Written to {escape(str(folder))}: {TABLE}, {JSON}, {CELLS}/", highlight=False, soft_wrap=True)
    console.print(f"As a page with pictures: maha-opt report {escape(str(folder))}", highlight=False, soft_wrap=True)
    return FAILED if failed else 0
