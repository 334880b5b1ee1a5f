"""The results file: a line of JSON for every finished cell, which several processes may append to."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["DEFAULT", "append", "read"]

DEFAULT = Path(__file__).parents[1] / "results" / "quality.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The finished cells; a line that breaks off, as that of a killed process, is left out."""
    return list(_lines(path)) if path.exists() else []


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds a finished cell, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False) + "\n"
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        broken = (text := file.read()) and not text.endswith("\n")
        file.write(("\n" if broken else "") + line)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # noqa: PERF203 - a broken line among thousands
            continue
