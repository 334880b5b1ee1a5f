"""The results file: a line of JSON for every finished cell, which several processes may append to."""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["DEFAULT", "append", "claimed", "curve_of", "read"]

DEFAULT = Path(__file__).parents[1] / "results" / "quality.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The finished cells; a line that breaks off, as that of a killed process, is left out."""
    return list(_lines(path)) if path.exists() else []


def curve_of(history: list[dict[str, Any]]) -> list[list[float | None]]:
    """The step, the loss of what was learned from and of what was judged by, where a trainer logged one of them."""
    return [
        [entry["step"], entry.get("loss"), entry.get("eval_loss")]
        for entry in history
        if "loss" in entry or "eval_loss" in entry
    ]


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds a finished cell, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False) + "\n"
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        broken = (text := file.read()) and not text.endswith("\n")
        file.write(("\n" if broken else "") + line)


@contextmanager
def claimed(path: Path, key: str) -> Iterator[bool]:
    """Whether a cell is this process's own: within it no other on this machine gets it. A process that dies lets go."""
    name = hashlib.sha256(f"{path.resolve()} {key}".encode()).hexdigest()
    with (Path(tempfile.gettempdir()) / f"maha-opt-{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # noqa: PERF203 - a broken line among thousands
            continue
