"""Commands for models: ``train``, ``evaluate``, ``generate``, ``inspect``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from maha_opt.cli.app import app, chosen, words_for_errors


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


DATA, MODEL, TRAINING = "Data", "Model", "Training"


@app.command()
def train(
    ctx: typer.Context,
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
    with words_for_errors(errors, extra="train"):
        from maha_opt.commands import train as command
        from models.training.arguments import read_arguments
        from models.training.settings import Settings

        if resume is not None:
            raise typer.Exit(command.run(None, resume, console, errors))
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
        given = [name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
        others = command.assignments(option or [], "--option")
        command.refuse_unused(model.value, given, others)
        if prices is not None:
            options["prices"] = prices if prices == "learned" else command.prices(prices)
        if solver is not None:
            options |= command.solver_options(solver)
        if gradient is not None:
            options["gradient"] = gradient
        settings = Settings(
            task=task.value,
            model=model.value,
            options=options | others,
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
            trainer=read_arguments(trainer or [], "--trainer"),
        )
        raise typer.Exit(command.run(settings, output, console, errors))


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
    options = chosen(locals())
    console, errors = Console(), Console(stderr=True)
    with words_for_errors(errors, extra="train"):
        from maha_opt.commands.evaluate import Request
        from maha_opt.commands.evaluate import run as work

        raise typer.Exit(work(Request(**options), console, errors))


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
    options = chosen(locals())
    console, errors = Console(), Console(stderr=True)
    with words_for_errors(errors, extra="train"):
        from maha_opt.commands.generate import Request
        from maha_opt.commands.generate import run as work

        raise typer.Exit(work(Request(**options), console, errors))


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
    options = chosen(locals())
    console, errors = Console(), Console(stderr=True)
    with words_for_errors(errors, extra="hf"):
        from maha_opt.commands.inspect import Request
        from maha_opt.commands.inspect import run as look

        raise typer.Exit(look(Request(**options), console, errors))
