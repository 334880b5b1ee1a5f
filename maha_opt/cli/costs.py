"""The command that counts operations: ``flops``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maha_opt.cli.app import app, chosen, words_for_errors


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
    options = chosen(locals())
    console, errors = Console(), Console(stderr=True)
    with words_for_errors(errors):
        from maha_opt.commands.flops import Request, run

        raise typer.Exit(run(Request(**options), console, errors))
