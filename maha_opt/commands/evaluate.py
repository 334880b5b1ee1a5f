"""What ``maha-opt evaluate`` does, apart from reading its options."""

from __future__ import annotations

import csv
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from maha_opt.aggregation_base import fusions_of
from maha_opt.contenders import Contender
from maha_opt.run_folder import sole_writer
from maha_opt.text import read_text
from models.training.evaluation import Guesses, bleu_and_chrf, guess, scores, solved_by, translate
from models.training.loading import Loaded, load
from models.training.settings import Settings
from models.training.tasks import Rows, make_task, read_pairs, read_texts
from models.training.texts import text_files
from models.training.tokens import TokenBlocks

CSV, POSITIONS, JSON = "evaluation.csv", "by_position.csv", "evaluation.json"


@dataclass(frozen=True)
class Request:
    """The options of the command, as ``maha-opt evaluate --help`` describes them."""

    run: Path
    text: list[Path] | None
    solver: list[str] | None
    rows: int
    context: int | None
    beams: int
    device: str
    output: Path | None


@dataclass(frozen=True)
class Outcome:
    """How good a model is with one solver.

    Attributes:
        solver: Its flag and options.
        values: What was measured, by its name.
        answers: What the model said, for comparison with what it says with another solver.
        guesses: Of a language model, token by token.
    """

    solver: str
    values: dict[str, float]
    answers: Sequence[Any]
    guesses: Guesses | None = None


def run(request: Request, console: Console, errors: Console) -> int:
    """Evaluates a model with its own solver and with others; prints a table, and writes it if a folder is named.

    Returns:
        The exit code, 0.

    Raises:
        ValueError, OSError: An option, the model or the data is of no use.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loaded = load(request.run, request.device)
    contenders = [Contender.parse(word) for word in request.solver or ()]
    fusions = fusions_of(loaded.model)
    if contenders and not fusions:
        raise ValueError(f"{request.run} holds a model without a fusion: there is nothing for --solver to solve.")
    about, measure = _judge(request, loaded)
    own = _label(str(fusions[0].solver), fusions[0].solver_options) if fusions else "no fusion"
    outcomes = []
    for contender in [None, *contenders]:
        solver = own if contender is None else _label(contender.solver, dict(contender.options))
        errors.print(f"Evaluating with {solver} …", highlight=False)
        within = (
            nullcontext() if contender is None else solved_by(loaded.model, contender.solver, **dict(contender.options))
        )
        with within, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", DeprecationWarning)  # of libraries among themselves
            began = time.perf_counter()
            outcome = measure(solver)
            outcome.values["seconds"] = time.perf_counter() - began
        for message in dict.fromkeys(str(warning.message).splitlines()[0] for warning in caught):
            errors.print(f"  {message}", markup=False, highlight=False)
        outcomes.append(outcome)
    console.print(about, highlight=False)
    console.print(table(outcomes))
    if request.output is not None:
        write(request.output, request, about, outcomes)
        console.print(f"Written to {escape(str(request.output))}: {CSV}, {JSON}", highlight=False)
    return 0


def _judge(request: Request, loaded: Loaded) -> tuple[str, Callable[[str], Outcome]]:
    """What is evaluated, in words, and how."""
    settings = loaded.settings or Settings(context=_longest(loaded))
    name = type(loaded.model).__name__
    if request.context is not None:
        settings = replace(settings, context=request.context)
    if name.endswith("ForCausalLM"):
        return _language(request, loaded, settings)
    if name.endswith("ForMaskedLM"):
        return _masked(request, loaded, settings)
    if request.text:
        texts = tuple(map(str, request.text))
        settings = replace(settings, texts=texts, validation=texts)
    if not settings.texts:
        raise ValueError("--text must name a table: the model does not say what it was trained on.")
    return (_classify if name.endswith("Classification") else _translate)(request, loaded, settings)


def _longest(loaded: Loaded) -> int:
    return min(int(loaded.model.config.max_position_embeddings), 1024)


def _blocks(request: Request, loaded: Loaded, settings: Settings) -> TokenBlocks:
    """Rows of the text that is named, or of what the run held out."""
    own = [read_text(file) for file in text_files(request.text or [])]
    blocks = TokenBlocks(loaded.tokenizer, own or read_texts(settings).validation, settings.context)
    blocks.tokens = blocks.spread(request.rows)
    return blocks


def _language(request: Request, loaded: Loaded, settings: Settings) -> tuple[str, Callable[[str], Outcome]]:
    blocks = _blocks(request, loaded, settings)

    def measure(solver: str) -> Outcome:
        found = guess(loaded.model, blocks.tokens)
        values = {
            "loss": found.loss,
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte(blocks.bytes_per_token),
        }
        return Outcome(solver, values, found.best.flatten().tolist(), found)

    tokens = blocks.tokens[:, 1:].numel()
    return f"{len(blocks)} rows of {settings.context} tokens; {tokens:,} tokens are guessed.", measure


def _masked(request: Request, loaded: Loaded, settings: Settings) -> tuple[str, Callable[[str], Outcome]]:
    blocks = _blocks(request, loaded, settings)
    collator = DataCollatorForLanguageModeling(loaded.tokenizer, seed=0)
    batch = collator([{"input_ids": row} for row in blocks.tokens])
    hidden = batch["labels"] != -100

    @torch.no_grad()
    def measure(solver: str) -> Outcome:
        batches = zip(batch["input_ids"].split(8), batch["labels"].split(8), strict=True)
        logits = torch.cat([loaded.model(ids.to(loaded.model.device)).logits.cpu() for ids, _ in batches])
        loss = torch.nn.functional.cross_entropy(logits[hidden].double(), batch["labels"][hidden])
        best = logits.argmax(-1)[hidden]
        accuracy = (best == batch["labels"][hidden]).double().mean()
        return Outcome(solver, {"loss": float(loss), "accuracy": float(accuracy)}, best.tolist())

    return f"{len(blocks)} rows of {settings.context} tokens; {int(hidden.sum()):,} are hidden and guessed.", measure


def _classify(request: Request, loaded: Loaded, settings: Settings) -> tuple[str, Callable[[str], Outcome]]:
    task = make_task(replace(settings, task="classify"), loaded.tokenizer)
    assert isinstance(task.validation, Rows)
    rows = task.validation.rows[: request.rows]
    labels = np.array([row["labels"] for row in rows])
    collator = DataCollatorWithPadding(loaded.tokenizer)

    def measure(solver: str) -> Outcome:
        logits = scores(loaded.model, rows, collator).double()
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        best = logits.argmax(-1).numpy()
        return Outcome(solver, {"loss": float(loss), "accuracy": float(np.mean(best == labels))}, best.tolist())

    return f"{len(rows):,} rows, {loaded.model.config.num_labels} classes.", measure


def _translate(request: Request, loaded: Loaded, settings: Settings) -> tuple[str, Callable[[str], Outcome]]:
    _, (sources, references) = read_pairs(replace(settings, task="translate"), ("source", "target"))
    sources, references = sources[: request.rows], references[: request.rows]

    def measure(solver: str) -> Outcome:
        targets = translate(loaded.model, loaded.tokenizer, sources, beams=request.beams)
        return Outcome(solver, bleu_and_chrf(targets, references), targets)

    return f"{len(sources):,} texts, {request.beams} beams, scored by sacrebleu.", measure


COLUMNS = {
    "loss": ("loss\nnats", "{:.5f}"),
    "perplexity": ("per-\nplexity", "{:.4f}"),
    "bits_per_byte": ("bits\nper byte", "{:.5f}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "bleu": ("BLEU", "{:.2f}"),
    "chrf": ("chrF", "{:.2f}"),
    "seconds": ("seconds", "{:.1f}"),
}


def table(outcomes: list[Outcome]) -> Table:
    """One line for each solver; what changes against the model's own is said beside it."""
    own = outcomes[0]
    names = [name for name in COLUMNS if name in own.values]
    result = Table(box=box.SIMPLE, padding=(0, 1), collapse_padding=True)
    result.add_column("solver", overflow="fold", min_width=12)
    for name in names:
        result.add_column(COLUMNS[name][0], justify="right", no_wrap=True)
    if len(outcomes) > 1:
        result.add_column("change", justify="right", no_wrap=True)
        result.add_column("same\nanswers", justify="right", no_wrap=True)
    for outcome in outcomes:
        cells = [COLUMNS[name][1].format(outcome.values[name]) for name in names]
        if len(outcomes) > 1:
            change = outcome.values[names[0]] - own.values[names[0]]
            same = np.mean([a == b for a, b in zip(outcome.answers, own.answers, strict=True)])
            cells += ["", ""] if outcome is own else [f"{change:+.1e}", f"{same:.2%}"]
        result.add_row(escape(outcome.solver), *cells)
    return result


def write(folder: Path, request: Request, about: str, outcomes: list[Outcome]) -> None:
    """Writes what was measured as CSV and JSON, and of a language model the loss by position."""
    with sole_writer(folder):
        rows = [{"solver": outcome.solver, **outcome.values} for outcome in outcomes]
        with (folder / CSV).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        settings = {name: str(value) for name, value in asdict(request).items() if name != "output"}
        content = {"about": about, "settings": settings, "outcomes": rows}
        (folder / JSON).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if outcomes[0].guesses is not None:
            losses = [outcome.guesses.losses.mean(0) for outcome in outcomes if outcome.guesses is not None]
            with (folder / POSITIONS).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["position", *(outcome.solver for outcome in outcomes)])
                for position, values in enumerate(torch.stack(losses, 1).tolist(), start=1):
                    writer.writerow([position, *values])


def _label(solver: str, options: Mapping[str, object]) -> str:
    return ":".join([solver, *(f"{name}={value}" for name, value in options.items())])
