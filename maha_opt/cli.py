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
    plugin: Annotated[
        list[str] | None,
        typer.Option(help="Python file or module that registers solvers of your own; may be given again."),
    ] = None,
) -> None:
    """Differentiable optimization layers for multiscale attention."""
    del version
    with _words_for_errors(Console(stderr=True)):
        for name in plugin or ():
            from maha_opt.plugins import load

            load(name)


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


class TaskName(str, Enum):
    """What a model can be trained for; names of `models.training.tasks`."""

    language = "language"
    masked = "masked"
    classes = "classify"
    translation = "translate"  # "translate" is a method of text


class ModelName(str, Enum):
    """The models that can be trained; names of `models.training.presets`."""

    maha = "maha"
    plain = "plain"
    window = "window"
    window_conv = "window-conv"
    tree = "tree"


class StrategyName(str, Enum):
    """How MAHA fuses its scales."""

    convex = "convex"
    nash = "nash"
    gate = "gate"


class Granularity(str, Enum):
    """Who gets weights of its own."""

    token = "token"
    token_head = "token_head"
    sequence = "sequence"
    head = "head"


class Precision(str, Enum):
    """Types of mixed precision."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


DATA, MODEL, TRAINING, PROBLEMS = "Data", "Model", "Training", "Problems"


@app.command()
def train(
    task: Annotated[
        TaskName, typer.Option(help="Guess the next token, hidden tokens, the class of a text, or its translation.")
    ] = TaskName.language,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            rich_help_panel=DATA,
            help="UTF-8 text file or folder of such, plain or compressed; may be given again. Default: a novel that is "
            "built in. For classify and translate: a table (.csv, .tsv, .jsonl, .parquet).",
        ),
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(rich_help_panel=DATA, help="The same, to judge by. Default: the end of what is learned from."),
    ] = None,
    held_out: Annotated[
        float, typer.Option(rich_help_panel=DATA, min=0.0, max=1.0, help="How much of it, then.")
    ] = 0.05,
    dataset: Annotated[
        str | None,
        typer.Option(rich_help_panel=DATA, help="Name that datasets.load_dataset takes, or NAME:CONFIGURATION."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA,
            help="Column of the data set that holds text; for tables two, with a comma: text,label or source,target. "
            "Numbers from 0 where a table does not name its columns.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="A published tokenizer, by name or folder. Default: bytes.")
    ] = None,
    model: Annotated[
        ModelName,
        typer.Option(
            rich_help_panel=MODEL,
            help="MAHA; or a transformer with full attention, one with a sliding window, without or with the "
            "convolutions of MAHA; or the decoder whose attention is a tree.",
        ),
    ] = ModelName.maha,
    strategy: Annotated[
        StrategyName, typer.Option(rich_help_panel=MODEL, help="How MAHA fuses its scales.")
    ] = StrategyName.convex,
    solver: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MODEL,
            help="Who solves the fusion; options follow a colon: projected_gradient:unroll=20. Default: pivot, exact; "
            "of a gate softmax.",
        ),
    ] = None,
    gradient: Annotated[
        str | None, typer.Option(rich_help_panel=MODEL, help="implicit, unrolled or one_step. Default: implicit.")
    ] = None,
    granularity: Annotated[
        Granularity, typer.Option(rich_help_panel=MODEL, help="Who gets weights of its own.")
    ] = Granularity.token,
    prices: Annotated[
        str | None,
        typer.Option(rich_help_panel=MODEL, help="L1 prices of the scales: 'learned', or numbers with commas."),
    ] = None,
    scales: Annotated[int, typer.Option(rich_help_panel=MODEL, min=1, help="Number of scales L.")] = 3,
    ratio: Annotated[
        int, typer.Option(rich_help_panel=MODEL, min=2, help="Compression ratio r: a cell of scale l is r^l tokens.")
    ] = 4,
    window: Annotated[
        int, typer.Option(rich_help_panel=MODEL, min=1, help="How many cells of its scale a query sees.")
    ] = 64,
    queries: Annotated[
        str, typer.Option(rich_help_panel=MODEL, help="Who asks: coarse (each cell) or fine (every token).")
    ] = "fine",
    projections: Annotated[
        str, typer.Option(rich_help_panel=MODEL, help="Of queries and keys: one for each scale, or one shared.")
    ] = "shared",
    levels: Annotated[int, typer.Option(rich_help_panel=MODEL, min=0, help="Levels of the tree.")] = 3,
    context: Annotated[
        int, typer.Option(rich_help_panel=MODEL, min=2, help="Most tokens that the model reads at once.")
    ] = 512,
    d_model: Annotated[int, typer.Option(rich_help_panel=MODEL, min=1, help="Channels.")] = 128,
    heads: Annotated[int, typer.Option(rich_help_panel=MODEL, min=1, help="Heads.")] = 4,
    layers: Annotated[int, typer.Option(rich_help_panel=MODEL, min=1, help="Blocks.")] = 2,
    d_ff: Annotated[int, typer.Option(rich_help_panel=MODEL, min=1, help="Width of the feed-forward parts.")] = 512,
    dropout: Annotated[float, typer.Option(rich_help_panel=MODEL, min=0.0, max=0.99, help="Dropout.")] = 0.0,
    option: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=MODEL, help="Any other of MAHAConfig, as name=value; may be given again."),
    ] = None,
    steps: Annotated[int, typer.Option(rich_help_panel=TRAINING, min=1, help="Steps of the optimizer.")] = 400,
    batch: Annotated[int, typer.Option(rich_help_panel=TRAINING, min=1, help="Rows for each process and part.")] = 8,
    accumulate: Annotated[int, typer.Option(rich_help_panel=TRAINING, min=1, help="Parts that make one step.")] = 1,
    learning_rate: Annotated[float, typer.Option(rich_help_panel=TRAINING, help="At its highest.")] = 2e-3,
    warmup: Annotated[
        float, typer.Option(rich_help_panel=TRAINING, min=0.0, max=1.0, help="Part of the steps in which it rises.")
    ] = 0.1,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=TRAINING, min=0.0, help="Of AdamW.")] = 0.1,
    log_every: Annotated[
        int, typer.Option(rich_help_panel=TRAINING, min=1, help="Steps between lines of the curve.")
    ] = 10,
    evaluate_every: Annotated[
        int, typer.Option(rich_help_panel=TRAINING, min=1, help="Steps between evaluations.")
    ] = 100,
    save_every: Annotated[int, typer.Option(rich_help_panel=TRAINING, min=1, help="Steps between checkpoints.")] = 100,
    keep: Annotated[int, typer.Option(rich_help_panel=TRAINING, min=1, help="Checkpoints that are kept.")] = 2,
    seed: Annotated[int, typer.Option(rich_help_panel=TRAINING, help="Of weights, order and dropout.")] = 0,
    precision: Annotated[
        Precision, typer.Option(rich_help_panel=TRAINING, help="Mixed precision, by autocast.")
    ] = Precision.fp32,
    device: Annotated[
        str, typer.Option(rich_help_panel=TRAINING, help="auto takes what accelerators there are; or cpu.")
    ] = "auto",
    trainer: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Any other of transformers.TrainingArguments, as name=value; may be given again.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/MODEL-DATE-TIME.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder of a run to go on with, from its last whole checkpoint; all else is as it was."),
    ] = None,
) -> None:
    """Train a model on text: learn, write checkpoints and curves, go on after a kill.

    The loop is that of transformers.Trainer. On several processes: torchrun --nproc-per-node 2 -m maha_opt.cli train …
    """
    console, errors = Console(), Console(stderr=True)
    with _words_for_errors(errors, extra="train"):
        from maha_opt import cli_train
        from models.training.settings import Settings

        if resume is not None:
            raise typer.Exit(cli_train.run(None, resume, console, errors))
        options: dict[str, object] = {
            "aggregation_strategy": strategy.value,
            "granularity": granularity.value,
            "num_scales": scales,
            "compression_ratio": ratio,
            "query_resolution": queries,
            "projections": projections,
            "d_model": d_model,
            "num_heads": heads,
            "num_layers": layers,
            "d_ff": d_ff,
            "dropout": dropout,
        }
        if prices is not None:
            options["prices"] = prices if prices == "learned" else cli_train.prices(prices)
        if solver is not None:
            options |= cli_train.solver_options(solver)
        if gradient is not None:
            options["gradient"] = gradient
        settings = Settings(
            task=task.value,
            model=model.value,
            options=options | cli_train.assignments(option or [], "--option"),
            context=context,
            window=window,
            levels=levels,
            texts=tuple(map(str, text or ())),
            validation=tuple(map(str, validation or ())),
            dataset=dataset,
            columns=tuple(columns.split(",")) if columns else (),
            held_out=held_out,
            tokenizer=tokenizer,
            steps=steps,
            batch=batch,
            accumulate=accumulate,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            evaluate_every=evaluate_every,
            save_every=save_every,
            log_every=log_every,
            keep=keep,
            seed=seed,
            precision=precision.value,
            device=device,
            trainer=cli_train.assignments(trainer or [], "--trainer"),
        )
        raise typer.Exit(cli_train.run(settings, output, console, errors))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of a saved model.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text, or table, to judge by; may be given again. Default: what the run held out."),
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="Solve the fusions by this one too and say what changes; options follow a colon; may be given again."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to judge by, at most, spread over the text.")] = 8,
    context: Annotated[int | None, typer.Option(min=2, help="Tokens of a row. Default: as in training.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Of a translation's search.")] = 4,
    device: Annotated[str, typer.Option(help="Where to compute, such as cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder for evaluation.csv and .json. Default: none.")] = None,
) -> None:
    """Say how good a trained model is, with its own solver and with others.

    Perplexity and bits per byte of a language model, accuracy of a classifier, BLEU and chrF of a translator.
    """
    console, errors = Console(), Console(stderr=True)
    with _words_for_errors(errors, extra="train"):
        from maha_opt.cli_evaluate import Request
        from maha_opt.cli_evaluate import run as work

        request = Request(
            run=run,
            texts=tuple(text or ()),
            solvers=tuple(solver or ()),
            rows=rows,
            context=context,
            beams=beams,
            device=device,
            output=output,
        )
        raise typer.Exit(work(request, console, errors))


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of a saved model.")],
    prompt: Annotated[str | None, typer.Option(help="What to continue, or to translate; '-' reads it.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many more.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token every time.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Only among so many likeliest; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Only among the likeliest of this mass.")] = 0.95,
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search.")] = 1,
    count: Annotated[int, typer.Option(min=1, help="How many continuations.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    solver: Annotated[str | None, typer.Option(help="Solve the fusions by this one; options follow a colon.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute, such as cpu or cuda.")] = "cpu",
) -> None:
    """Continue a prompt with a trained language model, or translate it."""
    console, errors = Console(), Console(stderr=True)
    with _words_for_errors(errors, extra="train"):
        from maha_opt.cli_generate import Request
        from maha_opt.cli_generate import run as work

        request = Request(
            run=run,
            prompt=prompt,
            tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            beams=beams,
            count=count,
            seed=seed,
            solver=solver,
            device=device,
        )
        raise typer.Exit(work(request, console, errors))


@app.command()
def inspect(
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of a model and its tokenizer, as save_pretrained writes them; or of a training run, whose "
            "newest checkpoint is taken if there is no model in the folder itself."
        ),
    ],
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text file to read. Default: the middle of a novel that is built in.")
    ] = None,
    passage: Annotated[str | None, typer.Option(help="What to read, literally, in place of a file.")] = None,
    start: Annotated[
        int | None, typer.Option(min=0, help="Character of the text to start at. Default: a paragraph in its middle.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Number of tokens. Default: 256, or as many as the model takes.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="Solver of the fusions, in place of the model's own; see maha-opt solvers.")
    ] = None,
    block: Annotated[str, typer.Option(help="Blocks to look at, from 1, with commas; 'all' for every one.")] = "all",
    output: Annotated[Path | None, typer.Option(help="Folder for the results. Default: RUN/inspect.")] = None,
) -> None:
    """Look inside a model: which scales every token of a passage uses, and who attends to whom.

    Prints how much each scale is used, and writes the weights of all tokens to weights.csv and the pictures
    weights.png, scales.png and attention.png.
    """
    console, errors = Console(), Console(stderr=True)
    with _words_for_errors(errors, extra="hf"):
        from maha_opt.cli_inspect import Request
        from maha_opt.cli_inspect import run as look

        request = Request(
            run=run,
            text=text,
            passage=passage,
            start=start,
            length=length,
            solver=solver,
            block=block,
            output=output,
        )
        raise typer.Exit(look(request, console, errors))


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
    with _words_for_errors(errors, extra="study"), prompt_interrupts():
        from maha_opt.cli_convergence import Request, run

        request = Request(seeds=seeds, solvers=solvers, iterations=iterations, scales=scales, text=text, output=output)
        raise typer.Exit(run(request, console, errors))


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
    from maha_opt.interrupts import prompt_interrupts

    console, errors = Console(), Console(stderr=True)
    with _words_for_errors(errors, extra="sweep"), prompt_interrupts():
        from maha_opt.cli_sweep import Request, run

        request = Request(
            solvers=solvers,
            gradients=gradients,
            seeds=seeds,
            scales=scales,
            condition=condition,
            coupling=coupling,
            tie_distance=tie_distance,
            feasible=feasible,
            price=price,
            problems=problems,
            reference=reference,
            steps=steps,
            max_iter=max_iter,
            engine=engine,
            jobs=jobs,
            output=output,
        )
        raise typer.Exit(run(request, console, errors))


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
    with _words_for_errors(errors, extra="study"):
        from maha_opt.html import write_report

        path = write_report(folder, output, pictures=pictures)
        console.print(f"Written to {path}", highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _words_for_errors(errors: Console, extra: str | None = None) -> Iterator[None]:
    """Ends the command with an exit code and one line of words where it is interrupted or fails.

    `extra` is what has to be installed for the command, where it needs more than the package itself.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        wanted = f": pip install 'maha-opt\\[{extra}]'" if extra else ""
        errors.print(f"[red]Error:[/] {error.name} is not installed{wanted}.", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
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
