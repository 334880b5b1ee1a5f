"""What ``maha-opt flops`` does, apart from reading its options."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from maha_opt.run_folder import sole_writer
from models.block import MAHABlock
from models.cost import Cost, MixerShape, full_attention_cost, maha_cost

CSV, JSON = "flops.csv", "flops.json"
SAMPLE = 256
"""Tokens of the small run on the CPU that counts what the solver does."""


class Large(NamedTuple):
    """A 7-billion-parameter transformer: a feed-forward part of two matrices in place of three of width 11,008."""

    d_model: int = 4096
    heads: int = 32
    layers: int = 32
    d_ff: int = 16512


LARGE = Large()


@dataclass(frozen=True)
class Request:
    """The options of the command, as ``maha-opt flops --help`` describes them."""

    lengths: str
    d_model: str
    heads: int
    scales: int
    ratio: int
    window: int
    coarsest_window: int
    queries: str
    projections: str
    causal: bool
    output: Path | None


@dataclass(frozen=True)
class Row:
    """One layer at one length; operations of a forward pass, a multiplication with its addition counting as two.

    Attributes:
        model: "layer", or "7B": the same of a whole transformer of that size, without its embeddings.
        length: Number of tokens.
        d_model: Number of channels.
        layer: What it is.
        scores: Scores and sums over values.
        attention: These with projections and decomposition.
        mixer: All that stands in the place of self-attention, output projection included.
        whole: Of "7B", all layers with their feed-forward parts; else None.
        saved_scores: Per cent below full attention.
        saved_attention: Likewise.
        saved_mixer: Likewise.
        saved_whole: Likewise.
        agrees: Whether torch's counter gave exactly the formula's numbers; None: it cannot count half a kernel.
    """

    model: Literal["layer", "7B"]
    length: int
    d_model: int
    layer: str
    scores: int
    attention: int
    mixer: int
    whole: int | None
    saved_scores: float
    saved_attention: float
    saved_mixer: float
    saved_whole: float | None
    agrees: bool | None


class Counted(NamedTuple):
    """What torch's counter saw of a layer."""

    scores: int
    attention: int
    mixer: int


def run(request: Request, console: Console, errors: Console) -> int:
    """Counts, prints and writes everything.

    Returns:
        The exit code: 0; 1 if the counter and a formula disagree.

    Raises:
        ValueError, OSError: If an option or the folder is of no use.
        RuntimeError: If torch's counter does not see attention.
    """
    lengths, widths = numbers(request.lengths, "--lengths"), numbers(request.d_model, "--d-model")
    if odd := [width for width in widths if width % request.heads]:
        raise ValueError(f"--heads must divide --d-model = {odd[0]}, but got {request.heads}.")
    shapes = list(variants(request, widths[0]))
    check_counter()
    rows: list[Row] = []
    for d_model in widths:
        with errors.status(f"counting at {d_model} channels"):
            own = [row for n in lengths for row in layer_rows(n, d_model, request)]
        rows += own
        console.print(table(own, f"One layer, d_model = {d_model}, {mode(request)}"))
    with errors.status("counting the shape of 7 billion parameters"):
        large = [row for n in lengths for row in layer_rows(n, LARGE.d_model, request, LARGE)]
    rows += large
    title = f"A transformer of 7 billion parameters ({LARGE.layers} layers, d_model = {LARGE.d_model}), {mode(request)}"
    console.print(table(large, title))
    ops = solver_operations(shapes[0][1])
    disagreeing = [row for row in rows if row.agrees is False]
    console.print(caption(rows, ops), highlight=False, soft_wrap=True)
    if request.output is not None:
        write(request.output, rows, request, ops)
        console.print(f"Written to {request.output}: {CSV}, {JSON}", highlight=False, markup=False)
    return 1 if disagreeing else 0


def layer_rows(n: int, d_model: int, request: Request, large: Large | None = None) -> Iterator[Row]:
    """Full attention and every variant of ours at one length.

    Args:
        n: Number of tokens.
        d_model: Number of channels.
        request: The options.
        large: The transformer to count as a whole; None: count one layer.
    """
    heads = large.heads if large else request.heads
    ff = 4 * n * d_model * large.d_ff if large else 0
    reference = full_attention_cost(n, d_model)
    counts: list[tuple[str, Cost, Counted | None]] = [("full attention", reference, count_full(n, d_model, heads))]
    if request.causal:
        counts.append(("full attention, half skipped", full_attention_cost(n, d_model, skipped=True), None))
    for name, shape in variants(request, d_model):
        counts.append((name, maha_cost(n, shape), count_maha(n, shape, heads)))
        if request.causal and maha_cost(n, shape, skipped=True) != counts[-1][1]:
            counts.append((f"{name}, half skipped", maha_cost(n, shape, skipped=True), None))
    layers = large.layers if large else 1
    for name, cost, counted in counts:
        scores, attention, mixer = figures(cost)
        full = figures(reference)
        saved = [100 * (1 - own / other) for own, other in zip((scores, attention, mixer), full, strict=True)]
        yield Row(
            model="7B" if large else "layer",
            length=n,
            d_model=d_model,
            layer=name,
            scores=layers * scores,
            attention=layers * attention,
            mixer=layers * mixer,
            whole=layers * (mixer + ff) if large else None,
            saved_scores=saved[0],
            saved_attention=saved[1],
            saved_mixer=saved[2],
            saved_whole=100 * (1 - (mixer + ff) / (full.mixer + ff)) if large else None,
            agrees=None if counted is None else counted == Counted(scores, attention, mixer),
        )


def figures(cost: Cost) -> Counted:
    """The three figures of a cost."""
    return Counted(cost.scores, cost.attention, cost.mixer)


def variants(request: Request, d_model: int) -> Iterator[tuple[str, MixerShape]]:
    """The variants that the options ask for, and MAHA as its paper has it: full attention, dense convolutions."""
    shape = MixerShape(
        d_model,
        request.scales,
        request.ratio,
        causal=request.causal,
        window=request.window,
        coarsest_window=request.coarsest_window or None,
    )
    queries = ("coarse", "fine") if request.queries == "all" else (request.queries,)
    projections = ("scale", "shared") if request.projections == "all" else (request.projections,)
    for resolution, own in product(queries, projections):
        changed: Any = {"query_resolution": resolution, "projections": own}
        words = "shared" if own == "shared" else "per scale"
        yield f"MAHA windowed, {resolution}, {words}", MixerShape(**{**asdict(shape), **changed})
    published: Any = {"attention": "full", "dense": True}
    yield "MAHA as in its paper", MixerShape(**{**asdict(shape), **published})


def count_flops(function: Callable[[], object]) -> dict[str, int]:
    """What torch's counter says of a call, for each operation."""
    with FlopCounterMode(display=False) as counter:
        function()
    return {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}


def scores_of(counts: dict[str, int]) -> int:
    """The part of an attention that is not projections: batched products, fused or not."""
    return sum(count for operation, count in counts.items() if "bmm" in operation or "attention" in operation)


def check_counter() -> None:
    """Raises RuntimeError unless torch's counter sees attention on the meta device, as it does not on a CPU."""
    x = torch.empty(1, 2, 8, 4, device="meta")
    if (seen := scores_of(count_flops(lambda: scaled_dot_product_attention(x, x, x)))) != 4 * 2 * 8 * 8 * 4:
        raise RuntimeError(f"torch's counter is of no use here: it gives {seen} for an attention of 2,048 operations.")


def count_full(n: int, d_model: int, heads: int) -> Counted:
    """Torch's counts of an attention layer on the meta device."""
    with torch.device("meta"):
        inward, outward = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        x = torch.empty(1, n, d_model)

    def attention() -> None:
        q, k, v = (y.unflatten(2, (heads, -1)).transpose(1, 2) for y in inward(x).chunk(3, dim=2))
        scaled_dot_product_attention(q, k, v)

    counts = count_flops(attention)
    output = count_flops(lambda: outward(x))
    return Counted(scores_of(counts), sum(counts.values()), sum(counts.values()) + sum(output.values()))


def count_maha(n: int, shape: MixerShape, heads: int) -> Counted:
    """Torch's counts of a `MAHABlock` without its feed-forward part on the meta device; of its fusion, the formula's.

    The problems of the fusion are solved by a loop that ends when it is done, which the meta device cannot.
    """
    with torch.device("meta"):
        block = make_block(shape, heads)
        x = torch.empty(1, n, shape.d_model)
    counts = count_flops(lambda: block.attention(x))
    answers = block.attention.answers(x)

    def rest() -> None:
        if block.convolution is not None:
            block.convolution(x)
        if block.gating is not None and shape.query_resolution == "coarse":
            for current, coarser in pairwise(answers):
                block.gating(current, coarser)
        elif block.gating is not None:
            block.gating.across(*block.attention.upsample(answers, n))
        block.output(x)

    attention = sum(counts.values())
    mixer = attention + sum(count_flops(rest).values()) + maha_cost(n, shape).fusion
    return Counted(scores_of(counts), attention, mixer)


def make_block(shape: MixerShape, heads: int) -> MAHABlock:
    """The block of a shape."""
    options = asdict(shape)
    return MAHABlock(options.pop("d_model"), heads, 1, 0.0, **options)


class _Elements(TorchDispatchMode):
    """Counts the numbers that operations put out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(result, Tensor):
            self.count += result.numel()
        return result


def solver_operations(shape: MixerShape, tokens: int = SAMPLE) -> int:
    """About how many elementwise operations the default solver makes of a token's problem, counted on the CPU.

    The problems are those of random scale outputs, all scales of which exist.
    """
    from maha_opt import convex_problem
    from solvers import solve

    generator = torch.Generator().manual_seed(0)
    Y = torch.randn(tokens, shape.num_scales, 64, generator=generator)
    problem = convex_problem(Y, torch.randn(tokens, 64, generator=generator))
    with _Elements() as elements, torch.no_grad():
        solve(problem)
    return elements.count // tokens


def mode(request: Request) -> str:
    """How the layers attend, in words."""
    scales = (
        f"{request.scales} scales, ratio {request.ratio}, windows {request.window}/{request.coarsest_window or '∞'}"
    )
    return f"{'causal' if request.causal else 'bidirectional'}, {scales}"


def table(rows: list[Row], title: str) -> Table:
    """The rows of one width, in units of 10⁹ operations, or 10¹² for a whole transformer; it fits 80 columns."""
    whole = rows[0].whole is not None
    unit, scale = ("TFLOP", 1e12) if whole else ("GFLOP", 1e9)
    result = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 0), collapse_padding=True)
    result.add_column("", no_wrap=True)
    for name in ("scores", "attention", "mixer", *(["with FF"] if whole else [])):
        result.add_column(f"{name}\n{unit}", justify="right", no_wrap=True)
        result.add_column("", justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if row.length != previous:
            result.add_section()
            result.add_row(f"[bold]{row.length:,} tokens[/]")
        previous = row.length
        cells = [(row.scores, row.saved_scores), (row.attention, row.saved_attention), (row.mixer, row.saved_mixer)]
        if row.whole is not None and row.saved_whole is not None:
            cells.append((row.whole, row.saved_whole))
        result.add_row(row.layer, *(text for flops, saved in cells for text in (figure(flops / scale), change(saved))))
    return result


def change(saved: float) -> str:
    """What was saved, as a change in per cent; nothing where it is the reference itself."""
    return f" {-saved:+.0f}%".replace("-", "−") if saved else ""


def figure(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def caption(rows: list[Row], operations: int) -> str:
    """What was counted and how, and whether counter and formula agree."""
    counted = [row for row in rows if row.agrees is not None]
    wrong = [f"{row.layer} at {row.length:,} tokens" for row in counted if not row.agrees]
    if wrong:
        verdict = f"COUNTER AND FORMULA DISAGREE: {'; '.join(wrong)}"
    else:
        verdict = f"the formulas of models/cost.py give the same in all {len(counted)} of them"
    return (
        "Forward pass of one sequence; a multiplication with its addition is 2 operations. In per cent: the change "
        "against full attention of the same width, all pairs counted. Queries are coarse or fine, projections shared "
        "or per scale; in the paper attention is full, convolutions dense.\n"
        f"Counted by torch.utils.flop_counter on the meta device; {verdict}. By formula: the matrix products of the "
        "fusion, whose solver cannot run on the meta device, and what a causal kernel skips where there is no window "
        "(half skipped). Pairs that a window masks are counted.\n"
        "Attention: with projections of queries, keys and values, and decomposition. Mixer: with convolution, gating, "
        "fusion and output projection.\n"
        "Not counted, as by the counter: elementwise work, such as softmax, depthwise convolutions and the solver. It "
        f"makes about {operations:,} elementwise operations for each token (on the CPU, {SAMPLE} random problems)."
    )


def write(folder: Path, rows: list[Row], request: Request, operations: int) -> None:
    """Writes the rows as CSV and, with the settings, as JSON."""
    with sole_writer(folder):
        records = [asdict(row) for row in rows]
        with (folder / CSV).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
        settings = {**asdict(request), "output": None, "large": LARGE._asdict()}
        content = {"settings": settings, "torch": torch.__version__, "solver_operations": operations, "rows": records}
        (folder / JSON).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def numbers(text: str, option: str) -> list[int]:
    """Reads positive integers with commas between them; k stands for 1,024.

    Raises:
        ValueError: If it is something else.
    """
    try:
        words = [word.strip().lower() for word in text.split(",")]
        values = [int(word[:-1]) * 1024 if word.endswith("k") else int(word) for word in words]
    except ValueError:
        values = [0]
    if min(values) < 1:
        raise ValueError(f"{option} must be positive integers with commas between them, such as 1k,4096, not {text!r}.")
    return values
