"""The page's parts about what `maha_opt.validation.convergence` found."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

import pandas as pd

from maha_opt.html.page import Part, drawn
from maha_opt.plots import convergence_curves
from maha_opt.validation import Convergence, confidence

CAPTION = (
    "Rate: error after one more step over error before. Medians over the seeds with 95 % bootstrap intervals; seeds "
    "whose error ends after finitely many steps have no rate."
)


def parts(found: Convergence, pictures: int) -> list[Part]:
    """A part for each problem, then what diverged and who did not take part.

    Args:
        found: What `convergence` found.
        pictures: Problems that get pictures, at most.
    """
    made = []
    for turn, (name, own) in enumerate(found.rates.groupby("problem", sort=False)):
        drawings = {}
        if turn < pictures:
            curves = drawn(lambda ax, name=name: convergence_curves(found, str(name), ax))
            drawings = {"Error of the weights against iteration: median and middle 80 % of the seeds": curves}
        made.append(Part(str(name), "", {CAPTION: _rates(own)}, drawings))
    lost = found.rates[found.rates["status"] == "diverged"]
    if len(lost):
        columns = ["problem", "solver", "seed", "item", "advice"]
        made.append(Part("Diverged", "", {"What diverged, and what would have helped": lost[columns]}, {}))
    if len(found.skipped):
        made.append(Part("Not run", "", {"Sets that a solver does not take": found.skipped}, {}))
    return made


def _rates(rates: pd.DataFrame) -> pd.DataFrame:
    numbers = rates.replace({"theoretical": {0.0: float("nan")}})
    intervals = confidence(numbers, ["solver"], ["fitted", "theoretical", "iterations"])
    shown = [
        f"{value:.4g}" if pd.isna(low) else f"{value:.4g} ({low:.4g} to {high:.4g})"
        for value, low, high in intervals[["value", "low", "high"]].itertuples(index=False)
    ]
    wide = intervals.assign(shown=shown).pivot(index="solver", columns="metric", values="shown")
    counts = rates.groupby("solver")["status"].value_counts().unstack(fill_value=0)
    table = pd.DataFrame(index=rates["solver"].unique()).join(wide).join(counts)
    return table.rename_axis("solver").reset_index()
