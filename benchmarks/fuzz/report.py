"""Results of a run: a line a cell, and the table at its end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from rich import box
from rich.table import Table

from benchmarks.fuzz.cells import Cell, Result


def read(path: Path) -> dict[Cell, Result]:
    """The cells that are finished already."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    results = [Result.read(json.loads(line)) for line in lines if line.endswith("}")]  # not a line cut short
    return {result.cell: result for result in results}


def append(path: Path, result: Result) -> None:
    """Adds a finished cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_short = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut_short else "") + json.dumps(result.line()) + "\n")


def families_table(results: list[Result]) -> Table:
    """Problems, what became of those that have a solution, and failures, per family."""
    table = Table(box=box.SIMPLE_HEAD, title="Families")
    for column in ("family", "problems", "solvable", "solved", "iteration limit", "gradients", "failing items"):
        table.add_column(column, justify="left" if column == "family" else "right")
    grouped: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        grouped[result.cell.family].append(result)
        grouped["all"].append(result)
    for family in (*(name for name in grouped if name != "all"), "all"):
        counts, failures, problems = total_of(grouped[family])
        solvable = counts["truth SOLVABLE"]
        table.add_row(
            family,
            f"{problems:,}",
            f"{solvable:,}",
            _share(counts["solved SOLVABLE"], solvable),
            _share(counts["iteration limit SOLVABLE"], solvable),
            f"{counts['gradients checked']:,}",
            f"{sum(failures.values()):,}",
            end_section=family == "all",
        )
    return table


def failures_table(results: list[Result]) -> Table:
    """Every kind of failure, how many items, in which families."""
    table = Table(box=box.SIMPLE_HEAD, title="Failures")
    for column in ("kind", "items", "families"):
        table.add_column(column, justify="right" if column == "items" else "left")
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        for kind, items in result.failures.items():
            kinds[kind][result.cell.family] += items
    for kind in sorted(kinds, key=lambda kind: -kinds[kind].total()):
        families = ", ".join(f"{family} {items}" for family, items in kinds[kind].most_common(4))
        table.add_row(kind, f"{kinds[kind].total():,}", families)
    return table


def counts_table(results: list[Result]) -> Table:
    """What was checked, and what could not be."""
    counts, _, _ = total_of(results)
    table = Table(box=box.SIMPLE_HEAD, title="Counted")
    table.add_column("what")
    table.add_column("items", justify="right")
    for name, count in sorted(counts.items()):
        table.add_row(name, f"{count:,}")
    return table


def total_of(results: list[Result]) -> tuple[Counter[str], Counter[str], int]:
    """Counts, failures and problems of all results together."""
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
        failures.update(result.failures)
    return counts, failures, sum(result.count for result in results)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else ""
