"""Makes the page on quality from the results of ``benchmarks.quality``: ``python -m benchmarks.quality.table``.

It prints the tables; ``--write docs/quality.md`` puts them between the markers of the page and draws the picture beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from benchmarks.quality.experiments import BATCH, CONTEXT, EXPERIMENTS, RATES, WINDOW
from benchmarks.quality.results import DEFAULT, read
from benchmarks.table import replace

BEGIN, END = "<!-- benchmark:quality -->", "<!-- /benchmark:quality -->"
PICTURE = "quality.png"
ORDER = ("convex", "nash", "mean", "softmax", "gate", "window-conv", "window", "plain", "tree")
CALLED = {
    "convex": "MAHA, convex",
    "nash": "MAHA, nash",
    "mean": "MAHA, mean of the scales",
    "softmax": "MAHA, softmax of scores",
    "gate": "MAHA, softmax gate",
    "window-conv": f"sliding window of {WINDOW}, same convolutions",
    "window": f"sliding window of {WINDOW}",
    "plain": "plain transformer, full attention",
    "tree": "hierarchical decoder (tree)",
}


def markdown(records: list[dict[str, Any]]) -> str:
    """The tables of all experiments that have results."""
    table = current(records)
    parts = [introduction(table)]
    makers: dict[str, tuple[str, Callable[[pd.DataFrame], str]]] = {
        "books": ("Models of equal size on books", books),
        "unrolled": ("Trained through an approximation", unrolled),
        "ablations": ("Parts left out or changed (convex unless named)", ablations),
    }
    for name, (title, make) in makers.items():
        own = table[table["experiment"] == name]
        if len(own):
            parts.append(f"### {title}\n\n{make(own)}")
    return "\n\n".join(parts)


def current(records: list[dict[str, Any]]) -> pd.DataFrame:
    """The cells that the present settings of the experiments would make, one a row."""
    wanted = {cell.key() for make in EXPERIMENTS.values() for cell in make()}
    return pd.DataFrame([record for record in records if record["key"] in wanted])


def introduction(table: pd.DataFrame) -> str:
    """Says what was trained, on what and how."""
    dates = sorted(date[:10] for date in table["date"])
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    versions = ", ".join(f"{name} {version}" for name, version in table["versions"].iloc[-1].items() if version)
    steps = int(table["steps"].max())
    return (
        f"Bytes of nine books in rows of {CONTEXT:,}, {BATCH} rows a step, {steps:,} steps "
        f"({steps * BATCH * CONTEXT / 1e6:.1f} million bytes), AdamW, cosine schedule, float32; two layers of 128 channels, "
        "the feed-forward width chosen so that all have the same number of parameters within 2 %. Learning rates of "
        f"{' and '.join(f'{rate:g}' for rate in RATES)} were tried for every model on the validation book, in runs of a quarter "
        "the length. Judged on two other books. The mean over seeds, and their standard deviation where there are several. "
        "Tokens per second of processor time, one thread, measured on a machine that others used too: good to 10 % or so. "
        "FLOPs of a forward pass, counted by torch, full attention over all pairs; what solvers do elementwise is not "
        f"counted. Made by `python -m benchmarks.quality`, {when}, with {versions}."
    )


def books(table: pd.DataFrame) -> str:
    """One line for each model."""
    rows = []
    for name in (name for name in ORDER if name in set(table["name"])):
        own = table[table["name"] == name]
        early, late = (own["test_by_position"].map(lambda bits, place=place: bits[place]) for place in (1, -1))
        rows.append(
            {
                "": CALLED[name],
                "bits per byte": spread(own["test"]),
                "at 16–64": spread(early),
                "at 512–1,024": spread(late),
                "seeds": len(own),
                "parameters": f"{own['parameters'].iloc[0]:,}",
                "learning rate": f"{own['rate'].iloc[0]:g}",
                "learned/s": f"{own['trained_per_second'].median():,.0f}",
                "read/s": f"{own['read_per_second'].median():,.0f}",
                "MFLOP per token": f"{own['flops_per_token'].iloc[0] / 1e6:.2f}",
            }
        )
    return lines(rows)


def unrolled(table: pd.DataFrame) -> str:
    """One line for each way to approximate."""
    return lines(
        [
            {
                "trained through": name,
                "bits per byte": spread(own["test"]),
                "the same, solved exactly": spread(own["test_exact"]),
                "seeds": len(own),
                "learned/s": f"{own['trained_per_second'].median():,.0f}",
            }
            for name, own in table.groupby("name", sort=False)
        ]
    )


def ablations(table: pd.DataFrame) -> str:
    """One line for each change."""
    return lines(
        [
            {
                "": name,
                "bits per byte": spread(own["test"]),
                "seeds": len(own),
                "learned/s": f"{own['trained_per_second'].median():,.0f}",
            }
            for name, own in table.groupby("name", sort=False)
        ]
    )


def spread(values: pd.Series) -> str:
    """The mean, and the standard deviation where there is one."""
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


def lines(rows: list[dict[str, Any]]) -> str:
    """Rows as a table in Markdown."""
    head = list(rows[0])
    body = [" | ".join(str(row[name]) for name in head) for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(f"| {line} |" for line in body)])


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Loss while learning, and by position in the context, for every model of the books."""
    import numpy as np
    from matplotlib.figure import Figure

    from benchmarks.quality.books import BORDERS

    table = current(records)
    table = table[table["experiment"] == "books"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    learning, positions = figure.subplots(1, 2)
    for place, name in enumerate(name for name in ORDER if name in set(table["name"])):
        own = table[table["name"] == name]
        style = {"color": f"C{place}", "label": CALLED[name], "linestyle": "-" if place < 5 else "--"}
        curves = [[(step, loss) for step, loss, _ in curve if loss is not None] for curve in own["curve"]]
        steps, losses = np.array(curves).mean(0).T
        learning.plot(steps * BATCH * CONTEXT / 1e6, losses / np.log(2), linewidth=1, **style)
        bits = np.array(own["test_by_position"].tolist())
        middles = np.sqrt(np.maximum(BORDERS[:-1], 1) * np.array(BORDERS[1:]))
        positions.plot(middles, bits.mean(0), marker="o", markersize=3, **style)
    learning.set(
        xlabel="bytes learned from (millions)", ylabel="bits per byte, in training", title="Learning", ylim=(None, 4)
    )
    positions.set(xscale="log", xlabel="position in the context (bytes)", ylabel="bits per byte, test books")
    positions.set_title("What the far field is worth")
    for axis in (learning, positions):
        axis.grid(True, color="0.9", linewidth=0.8)
    figure.legend(*learning.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main(
    results: Annotated[Path, typer.Option(help="The file that benchmarks.quality wrote.")] = DEFAULT,
    write: Annotated[Path | None, typer.Option(help="A page with the two markers; printed if not given.")] = None,
) -> None:
    """Prints the tables, or writes them and the picture."""
    records = read(results)
    if not records:
        raise typer.BadParameter(f"there are no results in {results.name} yet: run python -m benchmarks.quality first.")
    if write is None:
        typer.echo(markdown(records))
        return
    write.write_text(replace(write.read_text(encoding="utf-8"), markdown(records), BEGIN, END), encoding="utf-8")
    draw(records, write.parent / PICTURE)
    typer.echo(f"wrote the tables into {write.name}, and {PICTURE}")


if __name__ == "__main__":
    typer.run(main)
