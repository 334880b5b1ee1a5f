"""From the folder of a run to its page: sweeps, comparisons, convergence."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from maha_opt import run_folder
from maha_opt.html import comparisons, convergences
from maha_opt.html.page import Part, page
from maha_opt.run_folder import FolderError
from maha_opt.validation import Convergence
from maha_opt.validation.comparison import TYPES
from maha_opt.validation.sweep_folder import JSON as SWEEP
from maha_opt.validation.sweep_folder import cells_of


def write_report(folder: Path, output: Path | None = None, *, pictures: int = 12) -> Path:
    """Makes the page of a run of ``maha-opt sweep``, ``compare`` or ``convergence``, also of one that has not ended.

    Args:
        folder: Of the run.
        output: The page; None: ``report.html`` in the folder.
        pictures: Kinds of problems that get pictures, at most, the first ones; all get tables.

    Returns:
        The path of the page.

    Raises:
        FolderError: If the folder holds none of these runs, nothing was measured yet, or the page cannot be written.
    """
    kinds = {SWEEP: _sweep, run_folder.JSON: _comparison, run_folder.CONVERGENCE: _convergence}
    found = [name for name in kinds if (folder / name).is_file()]
    if not found:
        raise FolderError(f"{folder} holds no run: it has none of {', '.join(kinds)}.")
    path = folder / "report.html" if output is None else output
    try:
        head = json.loads((folder / found[0]).read_text(encoding="utf-8"))
        title, words, parts = kinds[found[0]](folder, head, pictures)
        path.write_text(page(title, words, [*parts, *_settings(head)]), encoding="utf-8")
    except FolderError:
        raise
    except (OSError, ValueError) as error:
        raise FolderError(f"Cannot make a page of {folder}: {error}.") from error
    return path


def _sweep(folder: Path, head: Mapping[str, Any], pictures: int) -> tuple[str, str, list[Part]]:
    table = cells_of(folder)
    if table.empty:
        raise FolderError(f"{folder} has no finished cell yet.")
    done = len(table[["problem", "seed"]].drop_duplicates())
    words = f"{done} of {head['cells']} cells: {len(head['problems'])} settings, {len(head['seeds'])} seeds."
    return "A sweep of random problems", words, comparisons.parts(table, pictures)


def _comparison(folder: Path, head: Mapping[str, Any], pictures: int) -> tuple[str, str, list[Part]]:
    table = pd.read_csv(folder / run_folder.CSV)
    if table.empty:
        raise FolderError(f"{folder} has no finished cell yet.")
    types = {name: kind for name, kind in TYPES.items() if name in table}
    table = table.astype(types).rename(columns={"kind": "problem"})
    return "A comparison of solvers on a text", head["message"], comparisons.parts(table, pictures)


def _convergence(folder: Path, head: Mapping[str, Any], pictures: int) -> tuple[str, str, list[Part]]:
    skipped = pd.DataFrame(head["skipped"], columns=["problem", "solver", "reason"])
    errors, rates = (pd.read_parquet(folder / name) for name in (run_folder.ERRORS, run_folder.RATES))
    words = f"{len(head['problems'])} kinds of problems, {len(head['seeds'])} seeds, {head['seconds']} s."
    return (
        "Convergence of the approximate solvers",
        words,
        convergences.parts(Convergence(errors, rates, skipped), pictures),
    )


def _settings(head: Mapping[str, Any]) -> list[Part]:
    """What the run was, at the end of the page."""
    tables = {}
    named = [(name, values) for name, values in head.get("problems", {}).items() if isinstance(values, dict)]
    if named:
        tables["Random problems"] = pd.DataFrame([{"name": name, **values} for name, values in named])
    for name, caption in (("settings", "Settings"), ("versions", "Versions"), ("machine", "Machine")):
        tables[caption] = pd.DataFrame(
            [(key, json.dumps(value, ensure_ascii=False)) for key, value in head[name].items()],
            columns=["name", "value"],
        )
    seeds = f"Seeds {', '.join(map(str, head['seeds']))}. " if "seeds" in head else ""
    return [Part("Settings", f"{seeds}Git revision: {head['revision'] or 'not known'}.", tables, {})]
