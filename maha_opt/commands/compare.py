"""What ``maha-opt compare`` does, apart from reading its options."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from maha_opt import report
from maha_opt.cells import Batch
from maha_opt.commands.options import FAILED, parse_device, parse_solvers, parse_steps
from maha_opt.compare import REFERENCE, compare
from maha_opt.contenders import Contender, expand
from maha_opt.interrupts import INTERRUPTED
from maha_opt.run_folder import CSV, JSON, PICTURE, RunFolder, folder_for, machine
from maha_opt.summary import rates, summarise
from maha_opt.text import novel, read_text
from models.text_problems import Recipe, batches, check_length

KINDS = ("convex", "nash")


@dataclass(frozen=True)
class Request:
    """The options of the command, as ``maha-opt compare --help`` describes them."""

    text: Path | None
    model: Path | None
    solvers: str
    seeds: int
    scales: int
    problems: int
    reference: int
    unroll: str
    max_iter: int
    convex_set: str
    nash_set: str
    ridge: float
    price: float
    device: str
    dtype: str
    threads: int
    output: Path | None


def run(request: Request, console: Console, errors: Console) -> int:
    """Measures, prints and writes everything.

    Returns:
        The exit code: 0; 1 if a cell crashed; 130 if the user interrupted.

    Raises:
        ValueError, OSError: If an option, the text or the folder is of no use.
    """
    contenders = expand(parse_solvers(request.solvers), parse_steps(request.unroll))
    device = parse_device(request.device)
    torch.set_num_threads(request.threads)
    text = novel() if request.text is None else read_text(request.text)
    kinds, problems = _sources(request, text, device)
    settings = {
        **asdict(request),
        "text": "Northanger Abbey (built in)" if request.text is None else str(request.text),
        "text_bytes": len(text),
        "model": None if request.model is None else request.model.name,
        "output": None,  # where a run was written says nothing about it
        "contenders": list(dict.fromkeys(_name(contender) for contender in (REFERENCE, *contenders))),
    }
    with folder_for("compare", request.output) as path:
        folder = RunFolder(path, settings, machine(device))
        code, message = _measure(folder, problems, list(kinds), contenders, request, errors)
        _print(folder, kinds, request, console)
        written = f"{escape(str(folder.path))}: {CSV}, {JSON}{_picture(folder, errors)}"
        console.print(f"{message}\nWritten to {written}", highlight=False)
        return code


def _sources(request: Request, text: bytes, device: torch.device) -> tuple[dict[str, str], Iterator[Batch]]:
    """The kinds of problems, each with what its table is about, and the problems of every seed and kind in turn."""
    dtype: torch.dtype = getattr(torch, request.dtype)
    if request.model is not None:
        from models.training.problems import trained_problems

        found = trained_problems(request.model, text, problems=request.problems, device=device, dtype=dtype)
        kinds = {kind: f"{kind} of {request.model.name}, {source.about}" for kind, source in found.items()}
        seeds = range(request.seeds)
        return kinds, (Batch(kind, seed, source(seed)) for seed in seeds for kind, source in found.items())
    check_length(text, request.scales)
    recipe = Recipe(
        problems=request.problems,
        scales=request.scales,
        convex_set=request.convex_set,
        nash_set=request.nash_set,
        ridge=request.ridge,
        price=request.price,
        device=device,
        dtype=dtype,
    )
    size = _count(request.scales, "scale")
    kinds = {kind: f"{kind} on {name}: {size}" for kind, name in zip(KINDS, recipe.sets, strict=True)}
    return kinds, batches(text, request.seeds, recipe)


def _measure(
    folder: RunFolder,
    problems: Iterator[Batch],
    kinds: list[str],
    contenders: list[Contender],
    request: Request,
    errors: Console,
) -> tuple[int, str]:
    """Measures all cells and writes them down; the exit code and how it ended, in words."""
    turns = [REFERENCE, *(contender for contender in contenders if contender != REFERENCE)]
    total = request.seeds * len(kinds) * len(turns)
    study = compare(problems, contenders, covered=request.reference, max_iter=request.max_iter)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=errors, transient=True) as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a warning would say stands in the cells
            task = progress.add_task("", total=total)
            for done in range(total):
                turn = turns[done % len(turns)]
                where = f"seed {done // (len(kinds) * len(turns))}, {kinds[done // len(turns) % len(kinds)]}"
                progress.update(task, completed=done, description=f"{where}: {escape(_name(turn))}")
                folder.append(next(study))
                if not errors.is_terminal and done % len(turns) == len(turns) - 1:
                    errors.print(f"{where}: done", highlight=False)
    except KeyboardInterrupt:
        message = f"Interrupted after {len(folder.cells)} of {total} cells; what is there is complete in itself."
        folder.describe(complete=False, message=message)
        return INTERRUPTED, message
    except Exception as error:
        folder.describe(complete=False, message="".join(traceback.format_exception(error)))
        raise
    failed = sum(cell.status == "failed" for cell in folder.cells)
    message = f"{failed} of {total} cells failed." if failed else "Complete."
    folder.describe(complete=True, message=message)
    return (FAILED if failed else 0), message


def _print(folder: RunFolder, kinds: dict[str, str], request: Request, console: Console) -> None:
    records = [asdict(cell) for cell in folder.cells]
    for kind, about in kinds.items():
        cells = [record for record in records if record["kind"] == kind]
        if cells:
            own = summarise(cells)
            seeds = len({record["seed"] for record in cells})
            where = f"{_count(seeds, 'seed')}, {request.dtype}, {request.device}"
            console.print(report.table(own, report.title(own, f"{about}, {where}")))
            console.print()
            lines = [*report.rate_lines(rates(cells)), *report.notes(own)]
            if lines:
                console.print("\n".join(lines) + "\n", highlight=False)


def _picture(folder: RunFolder, errors: Console) -> str:
    """Draws the picture if that is possible; what there is to say about it."""
    if not any(cell.error_weights_mean is not None for cell in folder.cells):
        return " (no errors were measured, so there is no picture)"
    try:
        from maha_opt.plots import save_picture
    except ImportError:
        errors.print("There is no picture, because matplotlib is missing: pip install 'maha-opt[study]'.", markup=False)
        return ""
    save_picture([asdict(cell) for cell in folder.cells], folder.path / PICTURE)
    return f", {PICTURE}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _name(contender: Contender) -> str:
    return contender.label if contender.steps is None else f"{contender.label}, {contender.steps} steps"
