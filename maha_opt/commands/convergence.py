"""What ``maha-opt convergence`` does, apart from reading its options."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from maha_opt.commands.options import parse_list
from maha_opt.plots import save_convergence
from maha_opt.run_folder import CONVERGENCE as JSON
from maha_opt.run_folder import ERRORS, RATES, claim, folder_for, machine, revision, versions, write_json
from maha_opt.text import novel, read_text
from maha_opt.validation import Convergence, Difficulty, convergence, grid
from maha_opt.validation.convergence import SOLVERS
from maha_opt.validation.sources import Source, settings_of
from models.text_problems import Recipe, check_length, problems_of

PICTURE = "convergence.png"


@dataclass(frozen=True)
class Request:
    """The options of the command, as ``maha-opt convergence --help`` describes them."""

    seeds: int
    solvers: str
    iterations: int
    scales: int
    text: Path | None
    model: Path | None
    condition: str | None
    coupling: str | None
    feasible: str | None
    output: Path | None


def run(request: Request, console: Console, errors: Console) -> int:
    """Watches, prints and writes everything.

    Returns:
        The exit code, 0.

    Raises:
        ValueError, OSError: If an option, the text or the folder is of no use.
    """
    torch.set_num_threads(1)  # the problems are small: more threads would only wait for each other
    text = novel() if request.text is None else read_text(request.text)
    problems = sources(request, text)
    solvers = SOLVERS if request.solvers.strip() == "all" else [word for word in request.solvers.split(",") if word]
    about = f"{len(problems)} kinds of problems, {request.seeds} seeds, {request.iterations} iterations"
    with folder_for("convergence", request.output) as folder, errors.status(about):
        claim(folder, (ERRORS, RATES, JSON, PICTURE))
        began = time.perf_counter()
        found = convergence(problems, solvers, request.seeds, iterations=request.iterations)
        seconds = round(time.perf_counter() - began, 1)
        write(folder, found, request, problems, seconds)
    for name in problems:
        console.print(table(found.rates[found.rates["problem"] == name], name))
        console.print()
    console.print("\n".join([CAPTION, *advice(found.rates)]), highlight=False, soft_wrap=True)
    files = f"{ERRORS}, {RATES}, {JSON}, {PICTURE}"
    console.print(f"{seconds} s. Written to {escape(str(folder))}: {files}", highlight=False, soft_wrap=True)
    return 0


def sources(request: Request, text: bytes) -> dict[str, Source]:
    """One problem for each seed: random ones of the difficulties that are named, or from easy to hard; and of a text.

    Those of a text are of one token, of the trained model that is named or of a layer with random weights.

    Raises:
        ValueError, OSError: If the difficulties, the model or the text are of no use.
    """
    scales = request.scales
    delta = min(0.02, 0.5 / (scales + 1))
    named = {
        name: parse_list(f"--{name}", text, kind)
        for name, text, kind in (
            ("condition", request.condition, float),
            ("coupling", request.coupling, float),
            ("feasible", request.feasible, str),
        )
        if text is not None
    }
    drawn = grid(**named, scales=[scales], problems=[1], tie_distance=[delta]) if named else {}
    if request.model is not None:
        from models.training.problems import trained_problems

        return {**drawn, **trained_problems(request.model, text, problems=1)}
    if drawn:
        return dict(drawn)
    check_length(text, scales)
    recipe = Recipe(problems=1, scales=scales)

    def random(**difficulty: float | str) -> Difficulty:
        return Difficulty(scales=scales, problems=1, tie_distance=delta, **difficulty)  # pyright: ignore[reportArgumentType]

    return {
        "unconstrained, condition 30": random(feasible="free", condition=30.0),
        "simplex, condition 10": random(condition=10.0),
        "simplex, condition 300": random(condition=300.0),
        "budget with prices, condition 10": random(feasible="budget", price=0.2),
        "game on a box, coupling 0.3": random(feasible="box", coupling=0.3),
        "game on a box, coupling 3": random(feasible="box", coupling=3.0),
        "text, convex on the simplex": lambda seed: problems_of(text, seed, recipe)["convex"],
        "text, Nash on a box": lambda seed: problems_of(text, seed, recipe)["nash"],
    }


def table(rates: pd.DataFrame, title: str) -> Table:
    """What was found about one kind of problem, solver by solver."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    made.add_column("\nsolver", no_wrap=True)
    for header in ("fitted\nrate", "middle 80 %\nof seeds", "rate in\ntheory", "\ngap", "\nsteps", "di-\nverge"):
        made.add_column(header, justify="right", no_wrap=True)
    for solver, own in rates.groupby("solver", sort=False):
        lost = own["status"] == "diverged"
        seen = own[own["fitted"].notna() & (own["theoretical"] != 0)]
        low, high = seen["fitted"].quantile(0.1), seen["fitted"].quantile(0.9)
        sure = seen[(seen["status"] != "diverged") & (seen["theory"] == "rate")]
        gap = (sure["fitted"] - sure["theoretical"]).abs().median()
        steps = own["iterations"].fillna(np.inf).median()
        made.add_row(
            str(solver),
            _figure(seen["fitted"].median()),
            f"{low:.3f}–{high:.3f}" if len(seen) else "–",
            ("≈" if (own["theory"] == "guide").any() else "") + _figure(seen["theoretical"].median()),
            "" if pd.isna(gap) else f"{gap:.0e}",
            f"{steps:.0f}" if np.isfinite(steps) else "",
            f"{lost.sum()}/{len(own)}" if lost.any() else "",
        )
    return made


CAPTION = (
    "Rate: error after one more step over error before, near the solution; medians over the seeds whose error does not "
    "end after finitely many steps. Theory: the spectral radius of the step on the active set; ≈: that of the best "
    "constant momentum, a guide and no bound. Gap: median of |fitted − theory| where nothing diverged. Steps: until "
    "half of the seeds are down to rounding."
)


def advice(rates: pd.DataFrame) -> Iterator[str]:
    """What diverged, and what would have helped, a line for each problem and solver: for the hardest of its seeds."""
    lost = rates[rates["status"] == "diverged"]
    for (problem, solver), own in lost.groupby(["problem", "solver"], sort=False):
        hardest = own.loc[own["theoretical"].fillna(0).idxmax()]
        yield f"{problem}: {solver} diverges; what helps at the hardest, seed {hardest['seed']}: {hardest['advice']}."


def write(folder: Path, found: Convergence, request: Request, problems: dict[str, Source], seconds: float) -> None:
    """Writes the tables as parquet, what they are as JSON, and the picture."""
    found.errors.to_parquet(folder / ERRORS, index=False)
    found.rates.to_parquet(folder / RATES, index=False)
    save_convergence(found, folder / PICTURE)
    settings = {
        **asdict(request),
        "text": "Northanger Abbey (built in)" if request.text is None else request.text.name,
        "model": None if request.model is None else request.model.name,
        "output": None,  # where a run was written says nothing about it
    }
    content = {
        "settings": settings,
        "seeds": list(range(request.seeds)),
        "problems": {name: settings_of(source) or "of the text" for name, source in problems.items()},
        "skipped": found.skipped.to_dict("records"),
        "seconds": seconds,
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "revision": revision(),
    }
    write_json(folder / JSON, content)


def _figure(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.4f}"
