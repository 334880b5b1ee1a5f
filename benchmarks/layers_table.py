"""Makes the tables of docs/layers.md from the results of ``benchmarks.layers``.

``python -m benchmarks.layers_table`` prints them; ``--write docs/layers.md`` puts them between the markers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.layers import DEFAULT_OUTPUT
from benchmarks.table import figure, publish

BEGIN, END = "<!-- benchmark:layers -->", "<!-- /benchmark:layers -->"
TORCH = "sdpa"
DETAILED = 4096
OVERVIEW = ("softmax", "maha", "maha-r4-shared", "maha-r4-fine", "h-transformer", "local", "published-convex")
PARTS = ("forward", "total")
MODES = ("causal", "bidirectional")


def markdown(results: dict[str, Any]) -> str:
    """Returns the tables: everybody at one length, and the most important ones at all lengths."""
    cells = {(cell["mode"], cell["n"]): cell for cell in results["cells"]}
    parts = [introduction(results)]
    for mode in MODES:
        if (mode, DETAILED) in cells:
            parts.append(f"**{DETAILED:,} tokens, {mode}**\n\n{detail(cells[mode, DETAILED], results)}")
    parts += [overview(cells, mode, results) for mode in MODES if any(mode == own for own, _ in cells)]
    parts += not_run(cells)
    return "\n\n".join(parts)


def introduction(results: dict[str, Any]) -> str:
    """Says what was measured, where and how."""
    settings, versions = results["settings"], results["versions"]
    dates = sorted(cell["date"][:10] for cell in results["cells"])
    when = "" if not dates else dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    threads = "one thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    clock = "processor time (others used the machine too)" if settings["clock"] == "cpu" else "wall-clock time"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"Layers with 256 channels and 4 heads on one sequence, {settings['dtype']}, {threads}, {clock}, "
        f"{results['machine']['cpu']}, {when}. A ratio is a layer's time over that of torch's attention layer within "
        f"one round: below 1 is faster. Medians over at most {settings['repeats']} rounds, quartiles in brackets. "
        "*Forward* is without gradients, *both* is forward and backward. Memory: the most that torch's allocator gave "
        "out at once during forward and backward, gradients included, input and parameters not. Made by "
        f"`python -m benchmarks.layers` with {packages}."
    )


def detail(cell: dict[str, Any], results: dict[str, Any]) -> str:
    """Returns one cell as a table, in the order of the contenders."""
    lines = [
        "| | forward, ms | ratio | both, ms | ratio | memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in cell["contenders"].items():
        if "not_run" in entry:
            continue
        texts = []
        for part in PARTS:
            texts += [figure(entry[f"{part}_ms"]["median"]), ratio(entry, part, name)]
        lines.append(f"| {results['contenders'][name]} | " + " | ".join((*texts, figure(entry["total_mb"]))) + " |")
    return "\n".join(lines)


def ratio(entry: dict[str, Any], part: str, name: str) -> str:
    """Returns a ratio with its quartiles."""
    found = entry.get(f"{part}_ratio")
    if name == TORCH or not found:
        return "1" if name == TORCH else ""
    brackets = f" ({found['low']:.2f} to {found['high']:.2f})" if entry["rounds"] > 1 else ""
    return f"**{found['median']:.2f}**{brackets}"


def overview(cells: dict[tuple[str, int], dict[str, Any]], mode: str, results: dict[str, Any]) -> str:
    """Returns the ratios of one mode at all lengths, forward and both, and the memory in megabytes."""
    lengths = sorted(n for own, n in cells if own == mode)
    lines = [
        f"**All lengths, {mode}**: forward / both as multiples of torch's attention layer, and memory in MB",
        "",
        "| | " + " | ".join(f"{n:,}" for n in lengths) + " |",
        "|---" * (len(lengths) + 1) + "|",
    ]
    for name in (TORCH, *OVERVIEW):
        entries = [cells[mode, n]["contenders"].get(name, {}) for n in lengths]
        if any("total_ms" in entry for entry in entries):
            label = results["contenders"][name] if name != TORCH else "attention layer, torch's fused attention: ms"
            lines.append(f"| {label} | " + " | ".join(summary(name, entry) for entry in entries) + " |")
    return "\n".join(lines)


def summary(name: str, entry: dict[str, Any]) -> str:
    """Returns two ratios and a memory, or of torch's attention layer two times and a memory."""
    if "total_ms" not in entry:
        return "not run"
    if name == TORCH:
        times = (figure(entry[f"{part}_ms"]["median"]) for part in PARTS)
    else:
        times = (f"{entry[f'{part}_ratio']['median']:.2f}" if f"{part}_ratio" in entry else "?" for part in PARTS)
    return f"{' / '.join(times)}, {figure(entry['total_mb'])} MB"


def not_run(cells: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """Returns in words what is missing and why: one item, or none."""
    missing: dict[str, dict[str, None]] = {}
    for (mode, n), cell in sorted(cells.items()):
        for name, entry in cell["contenders"].items():
            reason = entry.get("not_run", "")
            if "is not installed" in reason or "cannot be" in reason:
                missing.setdefault(name, {})[reason] = None
            elif reason:
                missing.setdefault(name, {})[f"{n:,} tokens, {mode} ({reason})"] = None
    lines = [f"- {name}: {'; '.join(places)}" for name, places in missing.items()]
    return ["Not run:\n\n" + "\n".join(lines)] if lines else []


def main(
    results: Annotated[Path, typer.Option(help="The file that benchmarks.layers wrote.")] = DEFAULT_OUTPUT,
    write: Annotated[Path | None, typer.Option(help="A page with the two markers; printed if not given.")] = None,
) -> None:
    """Prints the benchmark's table, or writes it into a page."""
    publish(results, write, markdown, BEGIN, END, "benchmarks.layers")


if __name__ == "__main__":
    typer.run(main)
