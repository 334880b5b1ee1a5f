"""Commands that study solvers: ``solvers``, ``compare``, ``convergence``, ``sweep``, ``report``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maha_opt.cli.app import app, chosen, words_for_errors
from maha_opt.interrupts import prompt_interrupts

PROBLEMS = "Problems"


class FloatType(str, Enum):
    """Floating point types that a comparison can run in."""

    float64 = "float64"
    float32 = "float32"


class SetName(str, Enum):
    """The names of `maha_opt.available_sets`, said again so that ``--help`` need not import torch."""

    simplex = "simplex"
    capped_simplex = "capped_simplex"
    box = "box"
    budget = "budget"
    nonnegative = "nonnegative"
    sum_to = "sum_to"
    free = "free"


@app.command()
def solvers() -> None:
    """List the solvers that --solvers takes."""
    from solvers import available_solvers
    from solvers.registry import about_solver

    for flag in available_solvers():
        typer.echo(f"{flag:<20}{about_solver(flag).replace('``', '')}")


@app.command()
def compare(
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text file to make problems of. Default: a novel that is built in.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a trained model whose fusions make the problems, a kind for each block; --scales, sets, "
            "--ridge and --price are then its own. Default: a layer with random weights."
        ),
    ] = None,
    solvers: Annotated[
        str,
        typer.Option(
            help="Solvers, with commas between them; 'all' for every one. Options follow a colon: "
            "best_response:sweep=gauss_seidel. cvxpylayers always runs, as the reference."
        ),
    ] = "all",
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds: of the weights, the passages and the tokens.")
    ] = 3,
    scales: Annotated[int, typer.Option(min=1, max=12, help="Number of scales L, the size of a problem.")] = 4,
    problems: Annotated[int, typer.Option(min=1, help="Problems of each kind for each seed.")] = 1024,
    reference: Annotated[int, typer.Option(min=1, help="How many of them the exact reference solves.")] = 64,
    unroll: Annotated[
        str, typer.Option(help="Numbers of steps of the unrolled solvers, with commas; empty for none.")
    ] = "5,20,80",
    max_iter: Annotated[int, typer.Option(min=1, help="Bound on the iterations where they run to tolerance.")] = 2000,
    convex_set: Annotated[SetName, typer.Option(help="Feasible set of the convex problems.")] = SetName.simplex,
    nash_set: Annotated[SetName, typer.Option(help="Feasible set of the Nash problems.")] = SetName.box,
    ridge: Annotated[
        float, typer.Option(min=0.0, help="Ridge, relative to the mean diagonal of the Gram matrix.")
    ] = 0.01,
    price: Annotated[float, typer.Option(min=0.0, help="L1 price of the finest scale, relative likewise.")] = 0.05,
    device: Annotated[str, typer.Option(help="Where to compute, such as cpu or cuda.")] = "cpu",
    dtype: Annotated[FloatType, typer.Option(help="Type to compute in; the reference is always float64.")] = (
        FloatType.float64
    ),
    threads: Annotated[
        int,
        typer.Option(min=1, help="CPU threads. One is fair: cvxpylayers is given one, and small problems gain little."),
    ] = 1,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: runs/compare-DATE-TIME.")
    ] = None,
) -> None:
    """Solve the same problems with every solver: accuracy, certificates and time, side by side.

    Text becomes scale outputs of a multiscale attention with random weights. Fusing them is a convex problem and a
    Nash game at every token; all solvers get the same ones. Prints a table, and writes results.csv, results.json and
    the picture accuracy.png to a folder. Ctrl-C keeps what is there so far.
    """
    options = chosen(locals())
    console, errors = Console(), Console(stderr=True)
    with words_for_errors(errors), prompt_interrupts():
        from maha_opt.commands.compare import Request, run

        raise typer.Exit(run(Request(**options), console, errors))


@app.command()
def convergence(
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of every problem.")] = 32,
    solvers: Annotated[
        str,
        typer.Option(
            help="Iterative solvers, with commas between them, options after colons; 'all' for the usual six."
        ),
    ] = "all",
    iterations: Annotated[int, typer.Option(min=16, help="How many of them to watch.")] = 600,
    scales: Annotated[int, typer.Option(min=2, max=12, help="Number of scales L, the size of a problem.")] = 4,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text file to make problems of. Default: a novel that is built in.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of a trained model that reads it. Default: a layer with random weights."),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PROBLEMS,
            help="Condition numbers, with commas; every combination with those below. Default, if none of the three is "
            "given: six kinds from easy to hard, and two of the text.",
        ),
    ] = None,
    coupling: Annotated[
        str | None, typer.Option(rich_help_panel=PROBLEMS, help="Norms of the antisymmetric part of M, likewise.")
    ] = None,
    feasible: Annotated[
        str | None, typer.Option(rich_help_panel=PROBLEMS, help="Feasible sets: " + ", ".join(SetName) + ".")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: runs/convergence-DATE-TIME.")
    ] = None,
) -> None:
    """Watch the approximate solvers converge: fitted rates beside those of theory, over seeds, and what diverges.

    On random problems of a named difficulty and on those of a text. Prints a table, and writes errors.parquet,
    rates.parquet, convergence.json and the picture convergence.png to a folder.
    """
    options = chosen(locals())
    console, errors = Console(), Console(stderr=True)
    with words_for_errors(errors, extra="study"), prompt_interrupts():
        from maha_opt.commands.convergence import Request, run

        raise typer.Exit(run(Request(**options), console, errors))


@app.command()
def sweep(
    solvers: Annotated[
        str, typer.Option(help="Solvers, with commas between them, options after colons; 'all' for every one.")
    ] = "all",
    gradients: Annotated[str, typer.Option(help="Of those that a solver has, which ones.")] = (
        "implicit,unrolled,one_step"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of every setting.")] = 8,
    scales: Annotated[str, typer.Option(rich_help_panel=PROBLEMS, help="Numbers of scales L.")] = "4",
    condition: Annotated[
        str, typer.Option(rich_help_panel=PROBLEMS, help="Condition numbers of the symmetric part of M.")
    ] = "10,100",
    coupling: Annotated[
        str, typer.Option(rich_help_panel=PROBLEMS, help="Norms of its antisymmetric part; 0: convex programs.")
    ] = "0,2",
    tie_distance: Annotated[
        str, typer.Option(rich_help_panel=PROBLEMS, help="Least distances of a weight from a tie.")
    ] = "0.02",
    feasible: Annotated[
        str, typer.Option(rich_help_panel=PROBLEMS, help="Feasible sets: " + ", ".join(SetName) + ".")
    ] = "simplex,box",
    price: Annotated[str, typer.Option(rich_help_panel=PROBLEMS, help="L1 prices λ, about.")] = "0",
    problems: Annotated[
        int, typer.Option(rich_help_panel=PROBLEMS, min=1, help="Problems of each setting and seed.")
    ] = 64,
    reference: Annotated[int, typer.Option(min=1, help="How many of them the exact reference solves.")] = 16,
    steps: Annotated[
        str, typer.Option(help="Fixed numbers of steps of the approximate solvers, besides running to tolerance.")
    ] = "5,20,80",
    max_iter: Annotated[int, typer.Option(min=1, help="Bound on the iterations where they run to tolerance.")] = 2000,
    engine: Annotated[
        str,
        typer.Option(
            help="local: the cores of this machine. dask: a Dask cluster here. dask://HOST:PORT: a running one."
        ),
    ] = "local",
    jobs: Annotated[int | None, typer.Option(min=1, help="Workers. Default: one for each core.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; that of a sweep that was ended goes on. Default: runs/sweep-DATE-TIME."
        ),
    ] = None,
) -> None:
    """Compare solvers over many settings of random problems and seeds, on all cores or a cluster.

    Every combination of the values, which have commas between them, is a setting; every setting with every seed a
    cell, written down as soon as it is finished. The same command with the same --output goes on after whatever ended
    it. Writes results.parquet, sweep.json and cells/ to the folder.
    """
    options = chosen(locals())
    console, errors = Console(), Console(stderr=True)
    with words_for_errors(errors, extra="sweep"), prompt_interrupts():
        from maha_opt.commands.sweep import Request, run

        raise typer.Exit(run(Request(**options), console, errors))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run of sweep, compare or convergence.")],
    output: Annotated[Path | None, typer.Option(help="The page. Default: report.html in the folder.")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Kinds of problems that get pictures, at most.")] = 12,
) -> None:
    """Make one HTML page of a run: its settings, tables with bootstrap intervals, pictures, and what failed.

    The page holds its pictures and needs no network. It can be made of a run that has not ended too.
    """
    console, errors = Console(), Console(stderr=True)
    with words_for_errors(errors, extra="study"):
        from maha_opt.html import write_report

        path = write_report(folder, output, pictures=pictures)
        console.print(f"Written to {path}", highlight=False, soft_wrap=True, markup=False)
