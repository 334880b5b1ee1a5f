"""Makes the README's table from the results of ``benchmarks.solvers``.

``python -m benchmarks.table`` prints it; ``python -m benchmarks.table --write README.md`` puts it between the markers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.solvers import DEFAULT_OUTPUT

BEGIN, END = "<!-- benchmark:solvers -->", "<!-- /benchmark:solvers -->"
OURS = "pivot"
EXACT = "cvxpylayers-exact"
DETAILED = ((4, 1024), (16, 1024))


def markdown(results: dict[str, Any]) -> str:
    """Returns the tables: who runs how long at two sizes, and an overview of all cells."""
    cells = {(cell["L"], cell["B"]): cell for cell in results["cells"]}
    parts = [introduction(results)]
    parts += [f"**L = {L}, B = {B:,}**\n\n{detail(cells[L, B], results)}" for L, B in DETAILED if (L, B) in cells]
    parts.append(overview(cells))
    parts += not_run(cells)
    return "\n\n".join(parts)


def introduction(results: dict[str, Any]) -> str:
    """Says what was measured, where and how."""
    settings, versions = results["settings"], results["versions"]
    dates = sorted(cell["date"][:10] for cell in results["cells"])
    when = "" if not dates else dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    threads = "one thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"B simplex programs with L weights each, {settings['dtype']}, {threads} for everyone ({settings['pinned']}), "
        f"{results['machine']['cpu']}, {when}. A ratio is the peer's time over ours, forward plus backward, within one "
        f"round. Medians over at most {settings['repeats']} rounds, quartiles in brackets. Errors are the largest over "
        f"up to {settings['checked']} items of the batch, against their solution in extended precision. Made by "
        f"`python -m benchmarks.solvers` with {packages}."
    )


def detail(cell: dict[str, Any], results: dict[str, Any]) -> str:
    """Returns one cell as a table, the fastest first."""
    lines = [
        "| | times as slow as `pivot` | forward, ms | backward, ms | together, ms | error of w | error of gradients |",
        "|---|---|---|---|---|---|---|",
    ]
    ran = {name: entry for name, entry in cell["contenders"].items() if "not_run" not in entry}
    for name, entry in sorted(ran.items(), key=lambda pair: pair[1]["total_ms"]["median"]):
        ratio = entry.get("ratio")
        brackets = f" ({figure(ratio['low'])} to {figure(ratio['high'])})" if ratio and entry["rounds"] > 1 else ""
        factor = "1" if name == OURS else f"**{figure(ratio['median'])}**{brackets}" if ratio else ""
        times = (figure(entry[part]["median"]) for part in ("forward_ms", "backward_ms", "total_ms"))
        errors = (f"{entry[part]:.0e}" for part in ("error_weights", "error_gradient"))
        lines.append(" | ".join((f"| {results['contenders'][name]}", factor, *times, *errors)) + " |")
    return "\n".join(lines)


def overview(cells: dict[tuple[int, int], dict[str, Any]]) -> str:
    """Returns all cells in one table: the fastest peer, and the exact reference, as multiples of our time."""
    batches = sorted({B for _, B in cells})
    lines = [
        "**All sizes**: the time of the fastest peer, and of cvxpylayers with SCS at eps 1e-10 (*exact*), over ours",
        "",
        "| | " + " | ".join(f"B = {B:,}" for B in batches) + " |",
        "|---" * (len(batches) + 1) + "|",
    ]
    for L in sorted({L for L, _ in cells}):
        row = [ratios(cells[L, B]) if (L, B) in cells else "" for B in batches]
        lines.append(f"| L = {L} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def ratios(cell: dict[str, Any]) -> str:
    """Returns the two ratios of the overview."""
    found = {name: entry["ratio"]["median"] for name, entry in cell["contenders"].items() if "ratio" in entry}
    peers = {name: ratio for name, ratio in found.items() if name != OURS}
    if not peers:
        return "not measured"
    fastest = min(peers, key=lambda name: peers[name])
    exact = f", exact {figure(peers[EXACT])}" if EXACT in peers else ""
    return f"**{figure(peers[fastest])}** {fastest}{exact}"


def not_run(cells: dict[tuple[int, int], dict[str, Any]]) -> list[str]:
    """Returns in words what is missing and why: one item, or none."""
    missing: dict[str, list[str]] = {}
    for (L, B), cell in cells.items():
        for name, entry in cell["contenders"].items():
            if "is not installed" in entry.get("not_run", ""):
                missing.setdefault(name, [entry["not_run"]])
            elif "not_run" in entry:
                missing.setdefault(name, []).append(f"L = {L}, B = {B:,} ({entry['not_run']})")
    lines = [f"- {name}: {'; '.join(places)}" for name, places in missing.items()]
    return ["Not run:\n\n" + "\n".join(lines)] if lines else []


def figure(value: float) -> str:
    """Returns three significant digits without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def replace(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """Returns a page with the table between its two markers.

    Raises:
        ValueError: if the page does not have both markers once, in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the page must have {begin} and, after it, {end}, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def main(
    results: Annotated[Path, typer.Option(help="The file that benchmarks.solvers wrote.")] = DEFAULT_OUTPUT,
    write: Annotated[Path | None, typer.Option(help="A page with the two markers; printed if not given.")] = None,
) -> None:
    """Prints the benchmark's table, or writes it into a page."""
    publish(results, write, markdown, BEGIN, END, "benchmarks.solvers")


def publish(
    results: Path, write: Path | None, make: Callable[[dict[str, Any]], str], begin: str, end: str, benchmark: str
) -> None:
    """Prints the table of a results file, or writes it between the markers of a page.

    Args:
        results: the file.
        write: the page; None: print.
        make: the table of what the file holds.
        begin: the marker before the table.
        end: the marker behind it.
        benchmark: what writes the file.

    Raises:
        typer.BadParameter: if there is no such file, or the page has not the markers.
    """
    if not results.exists():
        raise typer.BadParameter(f"there is no {results.name} yet: run python -m {benchmark} first.")
    table = make(json.loads(results.read_text(encoding="utf-8")))
    if write is None:
        typer.echo(table)
        return
    try:
        page = replace(write.read_text(encoding="utf-8"), table, begin, end)
    except ValueError as error:
        raise typer.BadParameter(f"{write.name}: {error}.") from error
    write.write_text(page, encoding="utf-8")
    typer.echo(f"wrote the table into {write}")


if __name__ == "__main__":
    typer.run(main)
