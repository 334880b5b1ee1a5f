"""A comparison as tables and sentences for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.markup import escape
from rich.table import Table

from maha_opt.contenders import Contender
from maha_opt.summary import Rate, Row

REFERENCE = "cvxpylayers"
HEADERS = (
    "error\nw max",
    "error\nw mean",
    "error\ngrad",
    "resi-\ndual",
    "exploit-\nability",
    "\nsteps",
    "µs per\nproblem",
    "speed-\nup",
)


def table(rows: list[Row], title: str) -> Table:
    """The measured rows of one kind of problem."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    made.add_column("\nsolver", no_wrap=True)
    for header in HEADERS:
        made.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        if row.measured:
            made.add_row(*_cells(row))
    return made


def title(rows: list[Row], about: str) -> str:
    """The heading of a table: what was solved, and how many of the problems the reference covers."""
    reference = next((row for row in rows if row.solver == REFERENCE and row.steps is None), None)
    problems = max((int(row.values.get("problems", 0)) for row in rows), default=0)
    if reference is None or not reference.measured:
        return f"{about}; the reference failed, so there are no errors"
    values = {name: int(reference.values[name]) for name in ("problems", "covered", "smooth")}
    words = f"{about}\nerrors: against {REFERENCE} on {values['covered']:,} of {problems:,} problems"
    if refused := values["problems"] - values["covered"]:
        words += f" ({refused} more answers of it miss their certificate)"
    if kinks := values["covered"] - values["smooth"]:
        words += f"; gradients without {kinks} next to a kink"
    return words


def notes(rows: Iterable[Row]) -> Iterator[str]:
    """What the table cannot say: crashes, solvers that cannot take the set, answers above their tolerance."""
    not_run: dict[str, list[str]] = {}
    for row in rows:
        name = escape(row.solver if row.steps is None else f"{row.solver}, {row.steps} steps")
        if failed := row.statuses.count("failed"):
            reasons = escape("; ".join(row.reasons))
            yield f"[red]failed[/]: {name} on {failed} of {len(row.statuses)} batches: {reasons}"
        elif "not run" in row.statuses:
            names = not_run.setdefault("; ".join(row.reasons), [])
            names += [escape(row.solver)] if escape(row.solver) not in names else []
        missed = int(row.values.get("unconverged", 0))
        if missed and row.steps is None and not is_heuristic(row):
            yield f"above its tolerance: {name} on {missed:,} of {int(row.values['problems']):,} problems"
    for reason, names in not_run.items():
        yield f"not run: {', '.join(names)}: {escape(reason)}"


def rate_lines(rates: Iterable[Rate]) -> Iterator[str]:
    """How fast unrolled solvers approach the reference, the range being over the seeds."""
    for rate in rates:
        gradient = "" if rate.gradient is None else f", of the gradient × {_range(rate.gradient)}"
        yield (
            f"{escape(rate.solver)}: per unrolled step ({rate.first} to {rate.last}), error of the weights × "
            f"{_range(rate.weights)}{gradient}"
        )


def is_heuristic(row: Row) -> bool:
    """Whether it solves nothing, so that a tolerance means nothing to it."""
    return not Contender.parse(row.solver).make().to_tolerance


def _cells(row: Row) -> list[str]:
    values = row.values
    gradients = [values[name] for name in ("error_gradient_q", "error_gradient_M") if name in values]
    errors = [_short(values.get("error_weights_max")), _short(values.get("error_weights_mean"))]
    errors.append(_short(max(gradients)) if gradients else "–")
    if row.solver == REFERENCE and row.steps is None:
        errors = ["–"] * 3
    name = escape(row.solver).replace(":", "\n ") if row.steps is None else f"  after {row.steps} steps"
    if "failed" in row.statuses:
        name += " [red](part)[/]"
    iterations = values.get("iterations", 0.0)
    speed_up = values.get("speed_up")
    return [
        name,
        *errors,
        _short(values.get("residual")),
        _short(values.get("exploitability")),
        f"{iterations:.0f}" if iterations else "–",
        _three(1e6 * values["seconds_per_problem"]),
        "–" if speed_up is None else _three(speed_up),
    ]


def _range(factors: tuple[float, float, float]) -> str:
    least, middle, most = (f"{factor:.3f}" for factor in factors)
    return middle if least == most else f"{middle} ({least} to {most})"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
