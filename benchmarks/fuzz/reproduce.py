"""A failure as a few lines of Python that need nothing but `solvers`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.fuzz.ask import ask
from benchmarks.fuzz.batches import Batch, Truth
from benchmarks.fuzz.checks import judge
from benchmarks.fuzz.findings import Failure, Findings

if TYPE_CHECKING:
    from benchmarks.fuzz.cells import Cell

MOST = 3  # files of a kind in a family
TEMPLATE = '''"""{kind}: {detail}

{where} Family {family!r}, {set_name}; by construction {truth}. Found by: {command}
"""

import torch
from math import inf, nan
from pathlib import Path

from solvers import AffineVI, Box, Budget, CappedSimplex, FeasibleSet, Free, NonNegative, Simplex, SumTo, solve

dtype = torch.{dtype}
{data}
problem = AffineVI(M, q, {feasible}, l1=l1)
solution = solve(problem)
print("weights", solution.weights.tolist())
print("status", solution.status.tolist(), "residual", solution.residual.tolist())
leaves = {{name: value for name, value in {leaves} if isinstance(value, torch.Tensor)}}
gradients = torch.autograd.grad(solution.weights, list(leaves.values()), cotangent, allow_unused=True)
for name, gradient in zip(leaves, gradients):
    print("gradient of", name, None if gradient is None else gradient.tolist())
'''


def write_reproductions(cell: Cell, findings: Findings, folder: Path) -> None:
    """Writes one file for each kind of failure of a cell, as long as there are not enough of that kind already."""
    first: dict[str, Failure] = {}
    for failure in findings.failures:
        first.setdefault(failure.kind, failure)
    for kind, item, detail, batch in first.values():
        stem = re.sub(r"[^a-z0-9]+", "-", f"{cell.dtype} {cell.family} {kind}".lower()).strip("-")[:120]
        folder.mkdir(parents=True, exist_ok=True)
        if len(list(folder.glob(f"{stem}.*.py"))) >= MOST:
            continue
        shrunk, where = _shrunk(batch, kind, item)
        command = f"python -m benchmarks.fuzz --seed {cell.seed} --dtype {cell.dtype} --most {cell.most}"
        text = _script(shrunk, kind, detail, where, f"{command} --cell {cell.number}", folder / f"{stem}.{cell.number}")
        (folder / f"{stem}.{cell.number}.py").write_text(text, encoding="utf-8")


def _shrunk(batch: Batch, kind: str, item: int) -> tuple[Batch, str]:
    """The item alone if it fails alone, else the batch."""
    if kind.startswith("exception"):
        return batch, "The whole batch."
    alone = batch.select(np.array([item]))
    if kind.startswith(("company", "invariance")):
        return alone, f"Item {item} by itself, before what it is compared with; run the cell for that."
    answer, own = ask(alone), Findings(alone)
    if not answer.error:
        judge(alone, answer, own)
    if any(kind.startswith(failure.kind) for failure in own.failures):
        return alone, f"Item {item} by itself."
    return batch, f"Item {item}; not by itself, so this is the whole batch."


def _script(batch: Batch, kind: str, detail: str, where: str, command: str, path: Path) -> str:
    names = ("M", "q", "l1", "lower", "upper", "total", "mask", "cotangent")
    values = {name: getattr(batch, name) for name in names}
    if batch.count > 1:  # too long to read
        torch.save(values, path.with_name(path.name + ".pt"))
        stored = f"torch.load(Path(__file__).with_name({path.name + '.pt'!r}))"
        data = f"data = {stored}\n{', '.join(names)} = (data[name] for name in {names})\n"
        data += "\n".join(f"{n}.requires_grad_()" for n in names[:6] if isinstance(values[n], torch.Tensor))
    else:
        data = "\n".join(f"{name} = {_literal(value, name)}" for name, value in values.items())
    feasible = f"FeasibleSet(lower, upper, total, {batch.equality}, mask)"
    named = type(batch.problem({}).feasible).__name__
    arguments = {"CappedSimplex": "upper, ", "Box": "lower, upper, ", "Budget": "total, ", "SumTo": "total, "}
    if named != "FeasibleSet":
        feasible = f"{named}({arguments.get(named, '')}mask=mask)"
    leaves = "[" + ", ".join(f'("{name}", {name})' for name in names[:6]) + "]"
    truth = Truth(int(batch.truth[0])).name if batch.count == 1 else "various"
    return TEMPLATE.format(
        kind=kind, detail=detail, where=where, family=batch.family, set_name=batch.set_name, truth=truth,
        command=command, dtype=str(batch.dtype).split(".")[1], data=data, feasible=feasible, leaves=leaves,
    )  # fmt: skip


def _literal(value: object, name: str) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if value.dtype == torch.bool:
        return f"torch.tensor({value.tolist()})"
    leaf = "" if name == "cotangent" else ", requires_grad=True"
    return f"torch.tensor({value.tolist()}, dtype=dtype{leaf})"
