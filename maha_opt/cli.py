"""The command line, ``maha-opt``. Commands import what they need when they run, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="maha-opt",
    help="Differentiable optimization layers for multiscale attention.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

INTERRUPTED = 130


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


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"maha-opt {version('maha-opt')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Differentiable optimization layers for multiscale attention."""
    del version


@app.command()
def solvers() -> None:
    """List the solvers that --solvers takes."""
    from maha_opt.contenders import ABOUT
    from solvers import available_solvers

    for flag in available_solvers():
        typer.echo(f"{flag:<20}{ABOUT.get(flag, 'registered by you')}")


@app.command()
def compare(
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text file to make problems of. Default: a novel that is built in.")
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
    from maha_opt.interrupts import prompt_interrupts

    console, errors = Console(), Console(stderr=True)
    with _words_for_errors(errors), prompt_interrupts():
        from maha_opt.cli_compare import Request, run

        request = Request(
            text=text,
            solvers=solvers,
            seeds=seeds,
            scales=scales,
            problems=problems,
            reference=reference,
            unroll=unroll,
            max_iter=max_iter,
            convex_set=convex_set.value,
            nash_set=nash_set.value,
            ridge=ridge,
            price=price,
            device=device,
            dtype=dtype.value,
            threads=threads,
            output=output,
        )
        raise typer.Exit(run(request, console, errors))


class Queries(str, Enum):
    """Who asks; names of `models.MultiscaleAttention`."""

    coarse = "coarse"
    fine = "fine"
    all = "all"


class Projections(str, Enum):
    """Whose projections of queries and keys; names of `models.MultiscaleAttention`."""

    scale = "scale"
    shared = "shared"
    all = "all"


@app.command()
def flops(
    lengths: Annotated[str, typer.Option(help="Numbers of tokens, with commas; 4k is 4,096.")] = "1k,4k,16k,64k",
    d_model: Annotated[str, typer.Option(help="Numbers of channels, with commas.")] = "256,768",
    heads: Annotated[int, typer.Option(min=1, help="Number of heads. The counts do not depend on it.")] = 4,
    scales: Annotated[int, typer.Option(min=1, max=24, help="Number of scales L.")] = 4,
    ratio: Annotated[int, typer.Option(min=2, help="Compression ratio r: a cell of scale l is r^l tokens.")] = 2,
    window: Annotated[int, typer.Option(min=1, help="How many cells of its scale a query sees.")] = 128,
    coarsest_window: Annotated[
        int, typer.Option(min=0, help="The same at the coarsest scale; 0: all of them, which is quadratic in the end.")
    ] = 256,
    queries: Annotated[Queries, typer.Option(help="Who asks: each cell, or every token.")] = Queries.all,
    projections: Annotated[
        Projections, typer.Option(help="Of queries and keys: one for each scale, or one shared.")
    ] = Projections.all,
    causal: Annotated[bool, typer.Option("--causal/--bidirectional", help="Whether no token sees later ones.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for flops.csv and flops.json. Default: none.")] = None,
) -> None:
    """Count what multiscale attention costs, in floating point operations, against full attention.

    Counts by torch's counter on the meta device, where nothing is computed, next to a formula for each; for one layer
    and for a transformer of 7 billion parameters. Prints tables, and writes them as CSV and JSON if you name a folder.
    """
    console, errors = Console(), Console(stderr=True)
    with _words_for_errors(errors):
        from maha_opt.cli_flops import Request, run

        request = Request(
            lengths=lengths,
            d_model=d_model,
            heads=heads,
            scales=scales,
            ratio=ratio,
            window=window,
            coarsest_window=coarsest_window,
            queries=queries.value,
            projections=projections.value,
            causal=causal,
            output=output,
        )
        raise typer.Exit(run(request, console, errors))


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
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: runs/convergence-DATE-TIME.")
    ] = None,
) -> None:
    """Watch the approximate solvers converge: fitted rates beside those of theory, over seeds, and what diverges.

    On random problems of a named difficulty and on those of a text. Prints a table, and writes errors.parquet,
    rates.parquet, convergence.json and the picture convergence.png to a folder.
    """
    from maha_opt.interrupts import prompt_interrupts

    console, errors = Console(), Console(stderr=True)
    with _words_for_errors(errors), prompt_interrupts():
        try:
            from maha_opt.cli_convergence import Request, run
        except ModuleNotFoundError as error:
            raise ImportError(f"This needs {error.name}: pip install 'maha-opt[study]'.") from error

        request = Request(seeds=seeds, solvers=solvers, iterations=iterations, scales=scales, text=text, output=output)
        raise typer.Exit(run(request, console, errors))


@contextmanager
def _words_for_errors(errors: Console) -> Iterator[None]:
    """Ends the command with an exit code and one line of words where it is interrupted or fails."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        errors.print(f"[red]Error:[/] {_one_line(error)}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _one_line(error: Exception) -> str:
    """What went wrong, in words; where as well if it is nothing that a user can bring about."""
    from traceback import extract_tb

    from rich.markup import escape

    line = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (ValueError, OSError, RuntimeError, MemoryError, ImportError)):
        place = extract_tb(error.__traceback__)[-1]
        line = f"{type(error).__name__}: {line} ({Path(place.filename).name}, line {place.lineno}). This is a bug."
    return escape(line)


if __name__ == "__main__":
    app()
