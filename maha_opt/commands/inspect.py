"""What ``maha-opt inspect`` does, apart from reading its options."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from maha_opt.contenders import Contender
from maha_opt.run_folder import sole_writer
from maha_opt.text import novel, read_text
from models.inspection import BlockRecord, inspect_transformer
from models.training.loading import load, transformer_of
from models.transformer import MAHATransformer

CSV, WEIGHTS, SCALES, ATTENTION = "weights.csv", "weights.png", "scales.png", "attention.png"
LENGTH, LONGEST = 256, 1024
"""Tokens of a passage: by default, and at most, for a page that can still be read."""

CHARACTERS_PER_TOKEN = 16
"""Of text, more than any tokenizer makes of it on average: so much is read for each token that is wanted."""


@dataclass(frozen=True)
class Request:
    """The options of the command, as ``maha-opt inspect --help`` describes them."""

    run: Path
    text: Path | None
    passage: str | None
    start: int | None
    length: int | None
    solver: str | None
    block: str
    output: Path | None


@dataclass(frozen=True)
class Inspected:
    """The chosen blocks on one passage of n tokens.

    Attributes:
        ids: (n,) int64.
        tokens: n texts, together the passage.
        records: of the blocks, for a batch of one.
        blocks: their numbers, from 1.
    """

    ids: Tensor
    tokens: list[str]
    records: list[BlockRecord]
    blocks: list[int]

    @property
    def strides(self) -> tuple[int, ...]:
        """Tokens in a cell of each scale."""
        return self.records[0].strides

    @property
    def weights(self) -> Tensor:
        """(blocks, n, L), the mean over heads."""
        return torch.stack([record.weights[0].mean(dim=1) for record in self.records])


def run(request: Request, console: Console, errors: Console) -> int:
    """Looks, prints and writes everything.

    Returns:
        The exit code, 0.

    Raises:
        ValueError, OSError: If the model, the passage, an option or the folder is of no use.
    """
    model, tokenizer, _ = load(request.run)
    transformer = transformer_of(request.run, model)
    if request.solver is not None:
        contender = Contender.parse(request.solver)
        options: dict[str, Any] = dict(contender.options)
        transformer.set_solver(contender.solver, "implicit", **options)  # which every solver takes
    ids = passage_ids(request, tokenizer, transformer)
    blocks = parse_blocks(request.block, len(transformer.layers))
    records = inspect_transformer(transformer, ids[None])
    inspected = Inspected(ids, token_texts(tokenizer, ids.tolist()), [records[block - 1] for block in blocks], blocks)
    output = request.run / "inspect" if request.output is None else request.output
    with sole_writer(output):
        _write_csv(inspected, output / CSV)
        _print(inspected, transformer, console)
        written = ", ".join([CSV, *_draw(inspected, output, errors)])
    console.print(f"Written to {escape(str(output))}: {written}", highlight=False)
    return 0


def passage_ids(request: Request, tokenizer: Any, transformer: MAHATransformer) -> Tensor:
    """The tokens of the passage, (n,) int64.

    Raises:
        ValueError: If options contradict each other, the passage is empty or too long, or a token is not the model's.
    """
    if request.text is not None and request.passage is not None:
        raise ValueError("--text and --passage both say what to read: give one of them.")
    longest = min(transformer.max_len, LONGEST)
    length = min(LENGTH, longest) if request.length is None else request.length
    if length > longest:
        raise ValueError(f"--length is {length}, but at most {longest} tokens can be looked at in this model.")
    if request.passage is not None:
        text, start = request.passage, 0
    else:
        text = (novel() if request.text is None else read_text(request.text)).decode("utf-8").replace("\r\n", "\n")
        start = middle(text, length)
    start = start if request.start is None else request.start
    text = text[start : start + CHARACTERS_PER_TOKEN * length]
    if not text.strip():
        raise ValueError(f"The passage is empty: there is nothing to read from character {start} on.")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][:length], dtype=torch.int64)
    if int(ids.max()) >= transformer.vocab_size:
        raise ValueError(
            f"The tokenizer is not the model's: it makes token {int(ids.max())}, but the model knows "
            f"{transformer.vocab_size} tokens."
        )
    return ids


def middle(text: str, length: int) -> int:
    """Where a passage of about so many characters starts: at the first paragraph of the latter half, if it fits."""
    last = max(0, len(text) - length)
    start = min(len(text) // 2, last)
    paragraph = text.find("\n\n", start)
    if paragraph < 0:
        return start
    while text[paragraph : paragraph + 1].isspace():
        paragraph += 1
    return paragraph if paragraph <= last else start


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; nothing, where it only begins a character of several bytes."""
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False).rstrip("\ufffd")
        # Where decoding changes what stood before, the token is decoded by itself.
        texts.append(text[len(before) :] if text.startswith(before) else tokenizer.decode([ids[end - 1]]))
        before = text
    return texts


def parse_blocks(text: str, number: int) -> list[int]:
    """Reads ``--block``: "all", or numbers from 1 with commas between them.

    Raises:
        ValueError: If there is no such block.
    """
    if text.strip() == "all":
        return list(range(1, number + 1))
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and 1 <= int(word) <= number for word in words):
        raise ValueError(f"--block must be 'all' or numbers from 1 to {number} with commas, but got {text!r}.")
    return sorted({int(word) for word in words})


def _print(inspected: Inspected, transformer: MAHATransformer, console: Console) -> None:
    fusion = next(transformer._blocks()).aggregation.fusion
    about = f"{len(inspected.tokens)} tokens, {type(fusion).__name__} by {fusion.solver}"
    table = Table(
        title=f"Mean weight of each scale (share of tokens at which it is exactly zero)\n{about}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("block", justify="right")
    for stride in inspected.strides:
        table.add_column("tokens" if stride == 1 else f"cells of {stride}", justify="right", no_wrap=True)
    table.add_column("worst residual", justify="right")
    for name, record in zip(inspected.blocks, inspected.records, strict=True):
        words = [_mean_and_off(record.weights[..., scale]) for scale in range(len(inspected.strides))]
        table.add_row(str(name), *words, f"{float(record.residual.max()):.1e}")
    console.print(table)


def _mean_and_off(weights: Tensor) -> str:
    """The mean over the tokens (and heads) that have the scale, and the share of them whose weight is exactly 0."""
    known = weights[~weights.isnan()]
    return f"{float(known.mean()):.3f} ({float((known == 0).double().mean()):.0%})" if known.numel() else "none"


def _write_csv(inspected: Inspected, path: Path) -> None:
    """A row for each weight; heads count from 1, and there is one where all share their weights."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["token", "position", "block", "head", "scale", "weight"])
        for name, record in zip(inspected.blocks, inspected.records, strict=True):
            for position, (token, heads) in enumerate(zip(inspected.tokens, record.weights[0].tolist(), strict=True)):
                for head, weights in enumerate(heads, 1):
                    for scale, weight in enumerate(weights):
                        missing = weight != weight
                        writer.writerow([token, position, name, head, scale, "" if missing else f"{weight:.9g}"])


def _draw(inspected: Inspected, folder: Path, errors: Console) -> list[str]:
    """Draws the pictures if that is possible; their names."""
    try:
        from matplotlib.figure import Figure

        from maha_opt.plots import attention_maps, scale_use, weights_over_text
    except ImportError:
        errors.print(
            "There are no pictures, because matplotlib is missing: pip install 'maha-opt[study]'.", markup=False
        )
        return []
    weights, maps = inspected.weights.numpy(), [[p[0].numpy() for p in r.attention] for r in inspected.records]
    tokens, strides, blocks = inspected.tokens, inspected.strides, inspected.blocks
    figures = {WEIGHTS: Figure(), SCALES: Figure(), ATTENTION: Figure()}
    weights_over_text(weights, tokens, strides, blocks=blocks, figure=figures[WEIGHTS])
    scale_use(weights, tokens, strides, blocks=blocks, figure=figures[SCALES])
    queries = inspected.records[0].query_resolution
    attention_maps(maps, strides, queries, num_tokens=len(tokens), blocks=blocks, figure=figures[ATTENTION])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box is drawn in its place
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=160)
    return list(figures)
