"""Layers in the place of self-attention, in one run: ``python -m benchmarks.layers``.

Fairness: all get the same input and threads, are warmed up untimed, and take their turn within every round (the order
rotates), so that a slow minute of the machine hits all alike. A ratio is taken within a round, over torch's attention
layer, before the median is. Forward is timed without gradients; forward and backward together with the gradients of the
input and of all parameters. Memory is the most that torch's allocator has given out at once during the call, beyond
what there was before it (input and parameters), by torch's profiler: gradients are in it, the libraries' own scratch
space is not.

A cell (one length, one mode) is written to the results file when it is finished, and a later run goes on from there.
"""

from __future__ import annotations

import datetime
import gc
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.solvers import (
    DIRECTORIES,
    NotRunError,
    available_gigabytes,
    cpu_model,
    in_words,
    limit_threads,
    load,
    numbers,
    save,
    spread,
    version,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.layer_peers import LayerContender

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "layers.json"
PACKAGES = ("maha-opt", "torch", "h-transformer-1d", "local-attention")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PROBES = (512, 2048)
"""Lengths that foretell how long a longer sequence takes."""

console = Console()


@dataclass(frozen=True)
class Settings:
    """What two runs must share for their cells to stand in one file; times are in seconds."""

    threads: int
    clock: str
    repeats: int
    budget: float
    seed: int

    def seconds(self, call: Callable[[], None]) -> float:
        """How long a call takes, without garbage collection."""
        clock = CLOCKS[self.clock]
        gc.disable()
        try:
            start = clock()
            call()
            return clock() - start
        finally:
            gc.enable()


@dataclass
class Running:
    """A contender that is ready: its module, its input and the cotangent, and the seconds it has taken.

    Attributes:
        module: the layer.
        x: (1, n, d), a leaf that requires a gradient.
        cotangent: as `x`.
        rounds: in how many rounds it takes part.
        forward: seconds, one entry a round.
        total: likewise.
    """

    module: nn.Module
    x: Tensor
    cotangent: Tensor
    rounds: int
    forward: list[float]
    total: list[float]

    def run_forward(self) -> None:
        """A forward pass without gradients."""
        import torch

        with torch.no_grad():
            self.module(self.x)

    def run_total(self) -> None:
        """A forward and a backward pass."""
        self.module(self.x).backward(self.cotangent)
        self.clear()

    def clear(self) -> None:
        """Drops the gradients."""
        self.x.grad = None
        self.module.zero_grad(set_to_none=True)


def prepare(contender: LayerContender, n: int, causal: bool, settings: Settings) -> Running:
    """Builds a contender and its input."""
    import torch

    from benchmarks.layer_peers import CHANNELS

    torch.manual_seed(settings.seed)
    x, cotangent = torch.randn(2, 1, n, CHANNELS).unbind()
    return Running(contender.build(n, causal), x.contiguous().requires_grad_(), cotangent.contiguous(), 1, [], [])


def warm_up(contender: LayerContender, n: int, causal: bool, settings: Settings) -> Running:
    """Builds a contender and calls it, unless it is known to be too slow or too large.

    Raises:
        NotRunError: if it is not installed, cannot run in this mode, would take too long or too much memory, or fails.
    """
    from benchmarks.layer_peers import HEADS

    if reason := contender.missing(causal):
        raise NotRunError(reason)
    need, free = contender.scores * HEADS * n**2 * 4 / 1e9, available_gigabytes()
    if need > 0.7 * free:
        raise NotRunError(f"needs about {need:.0f} GB of memory, {free:.0f} GB are free")
    try:
        expected = foretell(contender, n, causal, settings)
        if expected > settings.budget:
            raise NotRunError(f"predicted {in_words(expected)} a call")
        running = prepare(contender, n, causal, settings)
        running.run_forward()
        took = settings.seconds(running.run_total) + settings.seconds(running.run_forward)
    except NotRunError:
        raise
    except Exception as error:  # whatever a contender raises is its result here, not the end of the run
        line = (str(error).strip() or "no message").splitlines()[0]
        raise NotRunError(f"failed with {type(error).__name__}: {DIRECTORIES.sub('', line)}") from error
    running.rounds = max(1, min(settings.repeats, int(settings.budget / took)))
    return running


def foretell(contender: LayerContender, n: int, causal: bool, settings: Settings) -> float:
    """Seconds that a forward and backward pass will take, by the power law through two shorter lengths; 0: unknown."""
    if n <= PROBES[1]:
        return 0.0
    took = []
    for length in PROBES:
        running = prepare(contender, length, causal, settings)
        running.run_total()
        took.append(min(settings.seconds(running.run_total) for _ in range(2)))
    power = min(2.0, max(1.0, math.log(took[1] / took[0]) / math.log(PROBES[1] / PROBES[0])))
    return took[1] * (n / PROBES[1]) ** power


def peak_memory(call: Callable[[], None]) -> float:
    """The most megabytes that torch's allocator has given out at once during a call, beyond what there was before."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    results: Any = recorded.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / 1e6


def run_cell(n: int, causal: bool, contenders: list[LayerContender], settings: Settings) -> dict[str, Any]:
    """Measures every contender at one length and returns its entry in the results file."""
    from benchmarks.layer_peers import TORCH

    mode = "causal" if causal else "bidirectional"
    entries: dict[str, dict[str, Any]] = {}
    running: dict[str, Running] = {}
    for contender in contenders:
        with console.status(f"{n} tokens, {mode}: warming up {contender.name}"):
            try:
                ready = warm_up(contender, n, causal, settings)
                memory = {
                    "forward_mb": peak_memory(ready.run_forward),
                    "total_mb": peak_memory(lambda ready=ready: ready.run_total()),
                }
            except NotRunError as reason:
                entries[contender.name] = {"not_run": str(reason)}
                continue
        entries[contender.name] = {"rounds": ready.rounds, **memory}
        running[contender.name] = ready
    with console.status(f"{n} tokens, {mode}: timing"):
        take_turns(running, settings)
    for name, ready in running.items():
        for part in ("forward", "total"):
            own = getattr(ready, part)
            entries[name][f"{part}_ms"] = spread([1e3 * value for value in own])
            if TORCH in running:
                pairs = zip(own, getattr(running[TORCH], part), strict=False)  # a slow one has fewer rounds
                entries[name][f"{part}_ratio"] = spread([value / other for value, other in pairs])
    return {
        "n": n,
        "mode": mode,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "contenders": {contender.name: entries[contender.name] for contender in contenders},
    }


def take_turns(running: dict[str, Running], settings: Settings) -> None:
    """Times everyone round by round, each beginning with another one."""
    names = list(running)
    for turn in range(settings.repeats if names else 0):
        gc.collect()
        begin = turn % len(names)
        for name in names[begin:] + names[:begin]:
            ready = running[name]
            if turn < ready.rounds:
                ready.forward.append(settings.seconds(ready.run_forward))
                ready.total.append(settings.seconds(ready.run_total))


def header(settings: Settings, pinned: str, contenders: list[LayerContender]) -> dict[str, Any]:
    """Returns what is true of a whole results file."""
    from benchmarks import layer_peers

    return {
        "settings": {**asdict(settings), "dtype": "float32", "pinned": pinned},
        "problem": " ".join((layer_peers.__doc__ or "").split()),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "contenders": {contender.name: contender.description for contender in contenders},
    }


def finished(cell: dict[str, Any], contenders: list[LayerContender]) -> bool:
    """Tells whether a stored cell has what is asked for: all who could not run then cannot run now either."""
    stored, causal = cell["contenders"], cell["mode"] == "causal"
    return all(
        contender.name in stored
        and ("is not installed" not in stored[contender.name].get("not_run", "") or contender.missing(causal))
        for contender in contenders
    )


def show(cell: dict[str, Any]) -> None:
    """Prints one cell."""
    table = Table(title=f"{cell['n']:,} tokens, {cell['mode']}", title_justify="left", box=box.SIMPLE, padding=(0, 0))
    for column in ("contender", "forward\nms", "ratio", "forward +\nbackward ms", "ratio", "peak MB\nforward", "both"):
        table.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
    for name, entry in cell["contenders"].items():
        if "not_run" in entry:
            continue
        texts = []
        for part in ("forward", "total"):
            ratio = entry.get(f"{part}_ratio")
            texts += [f"{entry[f'{part}_ms']['median']:.3g}", f"{ratio['median']:.2f}" if ratio else ""]
        table.add_row(name, *texts, f"{entry['forward_mb']:.0f}", f"{entry['total_mb']:.0f}")
    console.print(table)
    for name, entry in cell["contenders"].items():
        if "not_run" in entry:
            console.print(f"{name}: not run: {entry['not_run']}")


def main(
    lengths: Annotated[str, typer.Option(help="Numbers of tokens, with commas.")] = "512,1024,2048,4096,8192,16384",
    modes: Annotated[str, typer.Option(help="causal, bidirectional, or both with a comma.")] = "causal,bidirectional",
    contenders: Annotated[str, typer.Option(help="Who takes part, with commas; 'all' for everyone.")] = "all",
    published: Annotated[
        Path | None, typer.Option(help="A checkout of the published MAHA code; not part of this project.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; every contender has one turn in each.")] = 9,
    budget: Annotated[float, typer.Option(help="Seconds for one contender in one cell.")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="Cores and threads, the same for everyone.")] = 2,
    clock: Annotated[
        str,
        typer.Option(help="wall, or cpu: the processor time of all threads, for a machine that others use as well."),
    ] = "wall",
    seed: Annotated[int, typer.Option(help="Seed of the parameters and the input.")] = 0,
    output: Annotated[
        Path, typer.Option(help="Results file; a run goes on where the last one stopped.")
    ] = DEFAULT_OUTPUT,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start the results file anew.")] = False,
) -> None:
    """Measures layers in the place of self-attention: time and memory, against torch's attention layer."""
    asked = [word.strip() for word in modes.split(",")]
    if unknown := [mode for mode in asked if mode not in ("causal", "bidirectional")]:
        raise typer.BadParameter(f"--modes must be causal, bidirectional or both, but got {', '.join(unknown)}.")
    if clock not in CLOCKS:
        raise typer.BadParameter(f"--clock must be wall or cpu, but got {clock}.")
    cells = [(n, mode) for n in numbers(lengths, "--lengths") for mode in asked]
    pinned = limit_threads(threads)
    import torch

    from benchmarks import layer_peers

    torch.set_num_threads(threads)
    known = {contender.name: contender for contender in layer_peers.LAYERS}
    if published is None:
        console.print("The published code takes no part: give --published, a checkout of it.")
    else:
        try:
            known |= {contender.name: contender for contender in layer_peers.published(published)}
        except FileNotFoundError as error:
            raise typer.BadParameter(f"--published: {error}.") from error
    names = list(known) if contenders == "all" else contenders.split(",")
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"--contenders must be among {', '.join(known)}, but got {', '.join(unknown)}.")
    chosen = [known[name] for name in names]
    settings = Settings(threads=threads, clock=clock, repeats=repeats, budget=budget, seed=seed)
    results = load(output, header(settings, pinned, chosen), fresh)
    for n, mode in cells:
        stored = [cell for cell in results["cells"] if (cell["n"], cell["mode"]) == (n, mode)]
        if stored and finished(stored[0], chosen):
            console.print(f"{n:,} tokens, {mode}: already there")
            continue
        cell = run_cell(n, mode == "causal", chosen, settings)
        others = [other for other in results["cells"] if (other["n"], other["mode"]) != (n, mode)]
        results["cells"] = sorted([*others, cell], key=lambda entry: (entry["mode"], entry["n"]))
        save(output, results)
        show(cell)
    console.print(f"results: {output}")


if __name__ == "__main__":
    typer.run(main)
