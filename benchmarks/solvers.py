"""Ours and the peers on the same simplex programs, in one run: ``python -m benchmarks.solvers``.

Fairness: every contender is pinned to the same number of cores and threads, is built and warmed up untimed, and takes
its turn within every round (the order rotates), so that a slow minute of the machine hits all alike. A ratio is taken
within a round, peer over ours, before the median is. Accuracy is measured on the same call as the time.

A cell (one L, one B) is written to the results file as soon as it is finished, and a later run goes on from there.
"""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.peers import Contender, Solver
    from benchmarks.reference import Problems, Reference

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "solvers.json"
PACKAGES = ("maha-opt", "torch", "numpy", "cvxpy", "cvxpylayers", "diffcp", "scs", "qpth", "proxsuite", "moreau")
SHORTEST = 0.02  # seconds: faster calls are repeated within a round until they have taken that long together
DIRECTORIES = re.compile(r"(?:[A-Za-z]:)?[\\/](?:[^\s\\/]+[\\/])+")  # no file of ours names a path of a machine
CHECKED = 256  # items of a batch that are compared with the reference

console = Console()


@dataclass(frozen=True)
class Settings:
    """What two runs must share for their cells to stand in one file; times are in seconds."""

    threads: int
    repeats: int
    budget: float
    seed: int


@dataclass
class Times:
    """Seconds per call, one entry a round."""

    forward: list[float]
    backward: list[float]

    def total(self) -> list[float]:
        """Returns forward plus backward, round by round."""
        return [a + b for a, b in zip(self.forward, self.backward, strict=True)]


class NotRunError(Exception):
    """Why a contender has no numbers in a cell, in words."""


def limit_threads(threads: int) -> str:
    """Gives this process ``threads`` cores and tells every library; must come before torch is imported.

    Returns:
        How it was done, in words. Moreau and proxsuite heed no variable: they ask the system how many cores they have.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)
    if not hasattr(os, "sched_setaffinity"):
        return "not pinned: this system cannot, so Moreau and proxsuite may use more threads than the others"
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise typer.BadParameter(f"--threads must be at most the {len(cores)} cores there are, but got {threads}.")
    os.sched_setaffinity(0, cores[-threads:])
    return f"pinned to {threads} of {len(cores)} cores"


def run_cell(L: int, B: int, contenders: list[Contender], settings: Settings) -> dict[str, Any]:
    """Measures every contender on one batch and returns its entry in the results file."""
    from benchmarks.peers import OURS
    from benchmarks.reference import random_problems, reference

    seed = settings.seed + 1_000_000 * L + B
    problems = random_problems(L, B, seed)
    truth = reference(problems, CHECKED)
    entries: dict[str, dict[str, Any]] = {}
    running: dict[str, tuple[Solver, int, int]] = {}
    times: dict[str, Times] = {}
    for contender in contenders:
        with console.status(f"L={L}, B={B}: warming up {contender.name}"):
            try:
                solver, first, accuracy = warm_up(contender, problems, truth, settings)
            except NotRunError as reason:
                entries[contender.name] = {"not_run": str(reason)}
                continue
        rounds = max(1, min(settings.repeats, int(settings.budget / sum(first)) - 1))
        entries[contender.name] = {"rounds": rounds, **accuracy}
        if rounds == 1 and settings.repeats > 1:
            entries[contender.name]["note"] = "measured once: a call takes most of the time budget"
            times[contender.name] = Times([first[0]], [first[1]])
        else:
            running[contender.name] = solver, rounds, max(1, min(100, int(SHORTEST / sum(first))))
    with console.status(f"L={L}, B={B}: timing"):
        times |= take_turns(running, problems, settings.repeats)
    for name, measured in times.items():
        for part, seconds in (
            ("forward", measured.forward),
            ("backward", measured.backward),
            ("total", measured.total()),
        ):
            entries[name][f"{part}_ms"] = spread([1e3 * second for second in seconds])
        if OURS in times:
            pairs = zip(measured.total(), times[OURS].total(), strict=False)  # a slow peer has fewer rounds
            entries[name]["ratio"] = spread([peer / ours for peer, ours in pairs])
    return {
        "L": L,
        "B": B,
        "seed": seed,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "checked": len(truth.items),
        "left_out_close_to_a_tie": truth.ties,
        "mean_support": float((truth.weights > 0).sum(-1).mean()) if len(truth.items) else None,
        "contenders": {contender.name: entries[contender.name] for contender in contenders},
    }


def take_turns(running: dict[str, tuple[Solver, int, int]], problems: Problems, repeats: int) -> dict[str, Times]:
    """Times everyone round by round, each beginning with another one.

    Args:
        running: the solver of every name, in how many of the rounds it takes part, and how many calls make a turn.
        problems: the batch.
        repeats: the number of rounds.
    """
    names, times = list(running), {name: Times([], []) for name in running}
    for turn in range(repeats if names else 0):
        gc.collect()
        begin = turn % len(names)
        for name in names[begin:] + names[:begin]:
            solver, rounds, calls = running[name]
            if turn < rounds:
                forward, backward = time_calls(solver, problems, calls)
                times[name].forward.append(forward)
                times[name].backward.append(backward)
    return times


def warm_up(
    contender: Contender, problems: Problems, truth: Reference, settings: Settings
) -> tuple[Solver, tuple[float, float], dict[str, float]]:
    """Builds a contender and calls it, unless small calls foretell that this would take too long.

    Returns:
        The solver, the seconds of its forward and backward pass, and its errors.

    Raises:
        NotRunError: if it is not installed, would take too long or too much memory, or fails.
    """
    from benchmarks.reference import natural_residual

    if reason := contender.missing():
        raise NotRunError(reason)
    B, L = problems.q.shape
    need, available = contender.copies * problems.M.nbytes / 1e9, available_gigabytes()
    if need > available:
        raise NotRunError(f"needs about {need:.0f} GB of memory, {available:.0f} GB are free")
    try:
        expected = expected_seconds(contender, problems, settings)
        if expected > settings.budget:
            raise NotRunError(f"predicted {in_words(expected)} a call")
        solver = contender.build(L, B, settings.threads)
        start = time.perf_counter()
        weights = solver.forward(problems.M, problems.q)
        middle = time.perf_counter()
        gradient_M, gradient_q = solver.backward(problems.cotangent)
        end = time.perf_counter()
        seconds = middle - start, end - middle
        if sum(seconds) < settings.budget / 20:  # a first call may load or compile, and says little of the next ones
            seconds = time_calls(solver, problems, 1)
    except NotRunError:
        raise
    except Exception as error:  # whatever a contender raises is its result here, not the end of the run
        line = (str(error).strip() or "no message").splitlines()[0]
        raise NotRunError(f"failed with {type(error).__name__}: {DIRECTORIES.sub('', line)}") from error
    weights = weights.detach()
    return (
        solver,
        seconds,
        {
            "error_weights": truth.error_weights(weights),
            "error_gradient": truth.error_gradient(gradient_M, gradient_q),
            "residual": natural_residual(problems, weights),
        },
    )


def expected_seconds(contender: Contender, problems: Problems, settings: Settings) -> float:
    """Foretells the time of a call on the whole batch from calls on 1, 16, 256 and 4,096 of its items.

    It looks no further once the line through the last two of them is over the budget.
    """
    B, L = problems.q.shape
    sizes, seconds = [0], [0.0]
    expected = 0.0
    for size in (1, 16, 256, 4096):
        if size >= B:
            break
        solver, part = contender.build(L, size, settings.threads), problems.first(size)
        if size == 1:
            time_calls(solver, part, 1)  # the very first call loads libraries
        sizes.append(size)
        seconds.append(sum(time_calls(solver, part, 1)))
        slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]) if size > 1 else 0.0
        expected = seconds[-1] + max(0.0, slope) * (B - size)
        if expected > settings.budget:
            break
    return expected


def time_calls(solver: Solver, problems: Problems, calls: int) -> tuple[float, float]:
    """Returns the mean seconds of the forward and of the backward pass over some calls, without garbage collection."""
    forward = backward = 0.0
    gc.disable()
    try:
        for _ in range(calls):
            start = time.perf_counter()
            solver.forward(problems.M, problems.q)
            middle = time.perf_counter()
            solver.backward(problems.cotangent)
            end = time.perf_counter()
            forward, backward = forward + middle - start, backward + end - middle
    finally:
        gc.enable()
    return forward / calls, backward / calls


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": statistics.median(values), "low": low, "high": high}


def available_gigabytes() -> float:
    """Returns the memory that is free, or infinity where the system does not say so in Linux's way."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("MemAvailable:")), float("inf"))


def in_words(seconds: float) -> str:
    """Returns a duration as a person says it."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def header(settings: Settings, pinned: str) -> dict[str, Any]:
    """Returns what is true of a whole results file."""
    from benchmarks.peers import CONTENDERS
    from benchmarks.reference import random_problems

    return {
        "settings": {**asdict(settings), "checked": CHECKED, "dtype": "float64", "pinned": pinned},
        "problem": " ".join((random_problems.__doc__ or "").split()),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "contenders": {contender.name: contender.description for contender in CONTENDERS.values()},
    }


def version(package: str) -> str | None:
    """Returns the version of a package, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Returns the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def load(output: Path, head: dict[str, Any], fresh: bool) -> dict[str, Any]:
    """Returns the results file to go on with: an empty one, or the one there if it was made in the same way."""
    if fresh or not output.exists():
        return {**head, "cells": []}
    results = json.loads(output.read_text(encoding="utf-8"))
    for part in ("settings", "problem", "machine", "versions"):
        # A peer that has been installed since is no difference: what it misses is measured now.
        if part == "versions":
            shared = {name for name, before in results[part].items() if before and head[part].get(name)}
            same = all(results[part][name] == head[part][name] for name in shared)
        else:
            same = results[part] == head[part]
        if not same:
            raise typer.BadParameter(
                f"{output.name} was made with other {part} ({results[part]}, now {head[part]}): "
                "give --fresh to start anew, or another --output."
            )
    return {**head, "cells": results["cells"]}


def save(output: Path, results: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    partial.replace(output)


def finished(cell: dict[str, Any], contenders: list[Contender]) -> bool:
    """Tells whether a stored cell has what is asked for: all who could not run then cannot run now either."""
    stored = cell["contenders"]
    return all(
        contender.name in stored
        and ("is not installed" not in stored[contender.name].get("not_run", "") or contender.missing())
        for contender in contenders
    )


def show(cell: dict[str, Any]) -> None:
    """Prints one cell."""
    table = Table(title=f"L = {cell['L']}, B = {cell['B']}", title_justify="left", box=box.SIMPLE, padding=(0, 0))
    for column in ("contender", "ratio\nto ours", "forward\nms", "backward\nms", "error\nw", "error\ngradient"):
        table.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
    for name, entry in cell["contenders"].items():
        if "not_run" in entry:
            continue
        ratio = entry.get("ratio")
        table.add_row(
            name,
            f"{ratio['median']:.3g} ({ratio['low']:.3g} – {ratio['high']:.3g})" if ratio else "",
            f"{entry['forward_ms']['median']:.3g}",
            f"{entry['backward_ms']['median']:.3g}",
            f"{entry['error_weights']:.0e}",
            f"{entry['error_gradient']:.0e}",
        )
    console.print(table)
    for name, entry in cell["contenders"].items():
        if remark := entry.get("not_run") or entry.get("note"):
            console.print(f"{name}: {'not run: ' if 'not_run' in entry else ''}{remark}")


def numbers(text: str, option: str) -> list[int]:
    """Reads positive integers with commas between them."""
    try:
        values = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option} must be integers with commas between them, but got {text!r}.") from error
    if min(values) < 1:
        raise typer.BadParameter(f"{option} must be positive, but got {min(values)}.")
    return values


def main(
    sizes: Annotated[str, typer.Option(help="L, the number of weights of a problem, with commas.")] = "2,4,8,16,64",
    batches: Annotated[
        str, typer.Option(help="B, the number of problems in a batch, with commas.")
    ] = "1,64,1024,16384",
    contenders: Annotated[str, typer.Option(help="Who takes part, with commas; 'all' for everyone.")] = "all",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; every contender has one turn in each.")] = 9,
    budget: Annotated[float, typer.Option(help="Seconds for one contender in one cell.")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="Cores and threads, the same for everyone.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the random problems.")] = 0,
    output: Annotated[
        Path, typer.Option(help="Results file; a run goes on where the last one stopped.")
    ] = DEFAULT_OUTPUT,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start the results file anew.")] = False,
) -> None:
    """Measures the exact solver of this project and its peers: time, accuracy, ratios."""
    cells = [(L, B) for L in numbers(sizes, "--sizes") for B in numbers(batches, "--batches")]
    pinned = limit_threads(threads)
    import torch

    from benchmarks.peers import CONTENDERS

    torch.set_num_threads(threads)
    names = list(CONTENDERS) if contenders == "all" else contenders.split(",")
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise typer.BadParameter(f"--contenders must be among {', '.join(CONTENDERS)}, but got {', '.join(unknown)}.")
    chosen = [CONTENDERS[name] for name in names]
    settings = Settings(threads=threads, repeats=repeats, budget=budget, seed=seed)
    results = load(output, header(settings, pinned), fresh)
    for L, B in cells:
        stored = [cell for cell in results["cells"] if (cell["L"], cell["B"]) == (L, B)]
        if stored and finished(stored[0], chosen):
            console.print(f"L = {L}, B = {B}: already there")
            continue
        cell = run_cell(L, B, chosen, settings)
        others = [other for other in results["cells"] if (other["L"], other["B"]) != (L, B)]
        results["cells"] = sorted([*others, cell], key=lambda entry: (entry["L"], entry["B"]))
        save(output, results)
        show(cell)
    console.print(f"results: {output}")


if __name__ == "__main__":
    typer.run(main)
