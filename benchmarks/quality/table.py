"""Makes the page on quality from the results of ``benchmarks.quality``: ``python -m benchmarks.quality.table``.

It prints the tables; ``--write docs/quality.md`` puts them between the markers of the page, and a picture beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from benchmarks.quality.experiments import (
    BATCH,
    CONTEXT,
    EXACT,
    EXPERIMENTS,
    RATES,
    WINDOW,
)
from benchmarks.quality.memory import DISTANCES, STAGES
from benchmarks.quality.results import DEFAULT, read
from benchmarks.quality.speed import Speed, read_speeds
from benchmarks.table import replace

BEGIN, END = "<!-- benchmark:quality -->", "<!-- /benchmark:quality -->"
PICTURE = "quality.png"
SMOOTHED = 40
"""Points of a curve, each of five steps, that are averaged in the picture."""
CALLED = {
    "convex": "MAHA, convex",
    "nash": "MAHA, nash",
    "mean": "MAHA, mean of the scales",
    "convex, from the mean": "MAHA, convex, target that starts at the mean",
    "convex, ridge 1": "MAHA, convex, ridge 1",
    "softmax": "MAHA, softmax of scores",
    "gate": "MAHA, softmax gate",
    "window-conv": f"sliding window of {WINDOW}, same convolutions",
    "window": f"sliding window of {WINDOW}",
    "plain": "plain transformer, full attention",
    "tree": "hierarchical decoder (tree)",
}

Record = dict[str, Any]
Groups = dict[str, list[Record]]
Speeds = dict[str, tuple[Speed, Speed]]


def markdown(records: list[Record], speeds: Speeds) -> str:
    """The tables of all experiments that have results."""
    records = current(records)
    parts = [introduction(records)]
    makers: dict[str, tuple[str, Callable[[Groups], str]]] = {
        "books": ("Models of equal size on books", partial(books, speeds=speeds)),
        "unrolled": ("Trained through an approximation", partial(unrolled, speeds=speeds)),
        "ablations": ("Parts left out or changed (convex unless named)", ablations),
        "positions": ("Positions of the hierarchical decoder", ablations),
        "sentiment": ("Sentiment of film reviews", sentiment),
        "translation": ("English to German", translation),
        "recall": ("Memory: associative recall", memory),
        "copy": ("Memory: selective copying", memory),
    }
    for name, (title, make) in makers.items():
        groups = by_name(records, name)
        if groups:
            parts.append(f"### {title}\n\n{trained(groups)}\n\n{make(groups)}")
    return "\n\n".join(parts)


def current(records: list[Record]) -> list[Record]:
    """The cells that the present settings of the experiments would make."""
    wanted = {cell.key() for make in EXPERIMENTS.values() for cell in make()}
    return [record for record in records if record["key"] in wanted]


def by_name(records: list[Record], experiment: str) -> Groups:
    """The cells of an experiment, by the name of their model, in the order of the experiment."""
    names = dict.fromkeys(cell.name for cell in EXPERIMENTS[experiment]())
    own = [record for record in records if record["experiment"] == experiment]
    groups = {name: [record for record in own if record["name"] == name] for name in names}
    return {name: group for name, group in groups.items() if group}


def introduction(records: list[Record]) -> str:
    """Says what was trained, on what and how."""
    dates = sorted(record["date"][:10] for record in records)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    versions = ", ".join(f"{name} {version}" for name, version in records[-1]["versions"].items() if version)
    revisions = dict.fromkeys(record["revision"][:7] for record in records)
    return (
        "The mean over seeds, and their standard deviation where there are several; differences are between models of "
        "the same seeds. AdamW, cosine schedule, float32; the feed-forward width is chosen so that all models of an "
        "experiment have the same number of parameters. On books: bytes of nine of them in rows of "
        f"{CONTEXT:,}, two layers of 128 channels (the tree has one, with two attentions for every level), judged on "
        "two other books. The contenders learn at the rate that was best for them on a validation book, of "
        f"{', '.join(f'{rate:g}' for rate in RATES)} tried in shorter runs; in other experiments all have one rate. "
        "FLOPs of a forward pass, counted by torch, full attention over all pairs; what solvers do "
        "elementwise is not counted. Tokens for each second of the processor and their ratio to the plain "
        "transformer's, one thread, all models in turn with first weights (`python -m benchmarks.quality.speed`), on a "
        f"machine that others use too. Made by `python -m benchmarks.quality`, {when}, revisions "
        f"{', '.join(revisions)}, with {versions}."
    )


def trained(groups: Groups) -> str:
    """Says how long the models of an experiment learned."""
    cell = next(iter(groups.values()))[0]
    rate = "each at its own rate" if cell["experiment"] == "books" else f"rate {cell['rate']:g}"
    of_shortest = " at first, fewer and of fewer rows at each longer length" if "64" in cell else ""
    return f"{cell['steps']:,} steps of {cell['batch']} row{'s' * (cell['batch'] > 1)}{of_shortest}; {rate}."


def books(groups: Groups, speeds: Speeds) -> str:
    """One line for each model."""
    return lines(
        [
            {
                "": CALLED[name],
                "bits per byte": spread(own["test"] for own in group),
                "at 16–64": spread(own["test_by_position"][1] for own in group),
                "at 512–1,024": spread(own["test_by_position"][-1] for own in group),
                "against the mean": against(group, groups.get("mean", [])),
                "seeds": len(group),
                "parameters": f"{group[0]['parameters']:,}",
                "learning rate": f"{group[0]['rate']:g}",
                "MFLOP per token": f"{group[0]['flops_per_token'] / 1e6:.2f}",
            }
            | speed(speeds.get(f"books: {name}"))
            for name, group in groups.items()
        ]
    )


def unrolled(groups: Groups, speeds: Speeds) -> str:
    """One line for each way to approximate."""
    return lines(
        [
            {
                "trained through": name,
                "bits per byte": spread(own["test"] for own in group),
                "the same, solved exactly": spread(own["test_exact"] for own in group),
                "against exact": against(group, groups.get(EXACT, [])),
                "seeds": len(group),
            }
            | speed(speeds.get(f"unrolled: {name}"))
            for name, group in groups.items()
        ]
    )


def ablations(groups: Groups) -> str:
    """One line for each change."""
    first = next(iter(groups.values()))
    return lines(
        [
            {
                "": name,
                "bits per byte": spread(own["test"] for own in group),
                "against the first line": against(group, first),
                "seeds": len(group),
            }
            for name, group in groups.items()
        ]
    )


def sentiment(groups: Groups) -> str:
    """One line for each model, and one for the usual baseline."""
    rows: list[Record] = [
        {
            "": CALLED[name],
            "accuracy": spread(own["test_accuracy"] for own in group),
            "seeds": len(group),
            "parameters": f"{group[0]['parameters']:,}",
        }
        for name, group in groups.items()
    ]
    baseline = next(filter(None, (own["tfidf_accuracy"] for group in groups.values() for own in group)), None)
    if baseline is not None:
        rows.append({"": "logistic regression on TF-IDF", "accuracy": f"{baseline:.3f}", "seeds": "", "parameters": ""})
    return lines(rows)


def translation(groups: Groups) -> str:
    """One line for each model."""
    return lines(
        [
            {
                "": CALLED[name],
                "BLEU": spread((own["bleu"] for own in group), 1),
                "chrF": spread((own["chrf"] for own in group), 1),
                "seeds": len(group),
                "parameters": f"{group[0]['parameters']:,}",
            }
            for name, group in groups.items()
        ]
    )


def memory(groups: Groups) -> str:
    """One line for each length and model: the share that was guessed, by how far back the answer stands."""
    parts = [f"{low + 1:,} to {high:,}" for low, high in pairwise(DISTANCES)]
    rows = []
    for length in STAGES:
        for name, group in groups.items():
            judged = [own[str(length)] for own in group]
            row = {"tokens": f"{length:,}", "": CALLED[name], "guessed": spread(own["test_accuracy"] for own in judged)}
            for place, part in enumerate(parts):
                found = [own["test_by_distance"][place] for own in judged]
                row[part] = spread(known) if (known := [value for value in found if value is not None]) else ""
            rows.append(row | {"seeds": len(group), "parameters": f"{group[0]['parameters']:,}"})
    return lines(rows)


def against(group: list[Record], base: list[Record]) -> str:
    """The mean difference in bits per byte from other models of the same seeds, and its standard deviation."""
    others = {own["seed"]: own["test"] for own in base}
    found = [own["test"] - others[own["seed"]] for own in group if own["seed"] in others]
    return spread(found, signed=True) if found and group is not base else ""


def spread(values: Iterable[float], digits: int = 3, *, signed: bool = False) -> str:
    """The mean, and the standard deviation where there is one."""
    values = list(values)
    middle = f"{mean(values):{'+' if signed else ''}.{digits}f}"
    return middle + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def speed(measured: tuple[Speed, Speed] | None) -> dict[str, str]:
    """Columns for tokens per second in learning and reading, and in brackets how many times the plain transformer's."""
    names = ("learned/s", "read/s")
    if measured is None:
        return dict.fromkeys(names, "")
    return {name: f"{own.tokens:,.0f} ({own.of_plain:.2f})" for name, own in zip(names, measured, strict=True)}


def lines(rows: list[Record]) -> str:
    """Rows as a table in Markdown."""
    head = list(rows[0])
    body = [" | ".join(str(row[name]) for name in head) for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(f"| {line} |" for line in body)])


def draw(records: list[Record], path: Path) -> None:
    """Loss while learning, and by position in the context, for every model of the books."""
    import numpy as np
    from matplotlib.figure import Figure

    from benchmarks.quality.books import BORDERS

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    learning, positions = figure.subplots(1, 2)
    groups = by_name(current(records), "books")
    for place, (name, group) in enumerate(groups.items()):
        style = {"color": f"C{place}", "label": CALLED[name], "linestyle": "-" if place < 5 else "--"}
        curves = [[(step, loss) for step, loss, _ in own["curve"] if loss is not None] for own in group]
        steps, losses = np.array(curves).mean(0).T
        bits = np.convolve(losses / np.log(2), np.full(SMOOTHED, 1 / SMOOTHED), "valid")
        learning.plot(steps[SMOOTHED - 1 :] * BATCH * CONTEXT / 1e6, bits, linewidth=1, **style)
        bits = np.array([own["test_by_position"] for own in group])
        middles = np.sqrt(np.maximum(BORDERS[:-1], 1) * np.array(BORDERS[1:]))
        positions.plot(middles, bits.mean(0), marker="o", markersize=3, **style)
    learning.set(xlabel="bytes learned from (millions)", ylabel="bits per byte, in training", ylim=(None, 3.5))
    learning.set_title("Learning")
    positions.set(xscale="log", xlabel="position in the context (bytes)", ylabel="bits per byte, test book")
    positions.set_title("What the far field is worth")
    lowest = min(own["test"] for group in groups.values() for own in group)
    positions.set_ylim(lowest - 0.1, lowest + 0.7)  # what is further above is not worth the others' resolution
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
        typer.echo(markdown(records, read_speeds()))
        return
    page = replace(write.read_text(encoding="utf-8"), markdown(records, read_speeds()), BEGIN, END)
    write.write_text(page, encoding="utf-8")
    draw(records, write.parent / PICTURE)
    typer.echo(f"wrote the tables into {write.name}, and {PICTURE}")


if __name__ == "__main__":
    typer.run(main)
