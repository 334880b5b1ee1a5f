"""The page's parts about a table of `maha_opt.validation.compare`."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

import pandas as pd

from maha_opt.html.page import Part, drawn, picture
from maha_opt.plots import gradient_error_against_iterations, save_picture, weight_error_against_iterations
from maha_opt.validation import confidence
from maha_opt.validation.comparison import as_cells

KEYS = ["solver", "gradient", "steps"]

METRICS = {
    "error_weights_mean": "error of the weights",
    "error_gradient_q": "error of the gradient of q",
    "support_recovered": "support recovered",
    "residual": "residual",
    "exploitability": "exploitability",
    "microseconds": "µs per problem",
}

CAPTION = (
    "Median over the seeds, and its 95 % bootstrap interval. Errors are against cvxpylayers. Times are those of the "
    "forward and the backward pass together; in a sweep with several workers, while the others ran."
)


def parts(table: pd.DataFrame, pictures: int) -> list[Part]:
    """Failed cells if there are any, then a part for each problem source.

    Args:
        table: As `compare` returns it.
        pictures: Problem sources that get pictures, at most.
    """
    failed, refused = (table[table["status"] == status] for status in ("failed", "not run"))
    made = []
    if len(failed):
        columns = ["problem", "solver", "gradient", "steps", "seed", "reason"]
        words = f"{len(failed)} of {len(table)} rows failed; an empty solver stands for all of them."
        made.append(Part("Failed", words, {"What failed, and why": failed[columns]}, {}))
    measured = table[table["status"] == "ok"]
    for turn, (name, own) in enumerate(measured.groupby("problem", sort=False)):
        made.append(Part(str(name), "", {CAPTION: errors(own)}, _pictures(own) if turn < pictures else {}))
    if len(refused):
        reasons = refused[["solver", "reason"]].drop_duplicates()
        made.append(Part("Not run", "Sets that a solver does not take.", {"Why": reasons}, {}))
    return made


def errors(measured: pd.DataFrame) -> pd.DataFrame:
    """Medians with their intervals as text, a row for each solver, gradient and number of steps."""
    steps = measured["steps"].astype(object).where(measured["steps"].notna(), "to tolerance").astype(str)
    table = measured.assign(steps=steps, microseconds=1e6 * measured["seconds_per_problem"])
    found = confidence(table, KEYS, [name for name in METRICS if table[name].notna().any()])
    text = [_interval(*values) for values in zip(found["value"], found["low"], found["high"], strict=True)]
    wide = found.assign(text=text).pivot(index=KEYS, columns="metric", values="text")
    order = pd.MultiIndex.from_frame(table[KEYS].drop_duplicates())
    seeds = table.groupby(KEYS)["seed"].nunique().rename("seeds")
    wide = wide.reindex(order).join(seeds).reset_index()
    present = [name for name in METRICS if name in wide]
    return wide[[*KEYS, "seeds", *present]].rename(columns=METRICS)


def _pictures(measured: pd.DataFrame) -> dict[str, str]:
    fixed = measured[measured["steps"].notna()]
    made = {}
    if measured["error_weights_mean"].notna().any():
        made["Accuracy against time (Pareto): down and to the left is better"] = picture(
            lambda buffer: save_picture(as_cells(measured), buffer)
        )
    if fixed["error_weights_mean"].notna().any():
        made["Error of the weights against the number of iterations"] = drawn(
            lambda ax: weight_error_against_iterations(measured, ax=ax)
        )
    if fixed["error_gradient_q"].notna().any():
        made["Error of the gradient against the number of iterations"] = drawn(
            lambda ax: gradient_error_against_iterations(measured, ax=ax)
        )
    return made


def _interval(value: float, low: float, high: float) -> str:
    return _number(value) if pd.isna(low) else f"{_number(value)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:.3g}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{value:.1e}"
