"""The folder of a run: cells go to a CSV file one by one, and a JSON file says what the run was and how it ended."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from maha_opt.cells import Cell

CSV, JSON, PICTURE = "results.csv", "results.json", "accuracy.png"
"""Files of ``maha-opt compare``."""

ERRORS, RATES, CONVERGENCE = "errors.parquet", "rates.parquet", "convergence.json"
"""Files of ``maha-opt convergence``, besides its picture."""

PACKAGES = ("maha-opt", "torch", "numpy", "scipy", "pandas", "pyarrow", "cvxpy", "cvxpylayers", "diffcp", "scs")
COLUMNS = tuple(column.name for column in fields(Cell) if column.name != "traceback")


class FolderError(OSError):
    """A folder that cannot be used; the message says why."""


class RunFolder:
    """Writes a run down as it goes on, so that whatever ends it leaves something readable.

    Args:
        path: The folder, made if it is missing.
        settings: What the run was asked to do; anything that JSON can hold.
        machine: What it runs on, likewise.

    Raises:
        FolderError: If it cannot be written, or holds the results of another run.
    """

    def __init__(self, path: Path, settings: dict[str, Any], machine: dict[str, Any]) -> None:
        self.path = path
        self.cells: list[Cell] = []
        self._began = datetime.datetime.now(datetime.timezone.utc)
        self._head = {"settings": settings, "machine": machine, "versions": versions(), "revision": revision()}
        try:
            claim(path, (CSV, JSON))
            self._write_row(COLUMNS)
            self.describe(complete=False, message="Running, or ended without a word.")
        except FolderError:
            raise
        except OSError as error:
            raise FolderError(f"Cannot write to {path}: {error.strerror or error}.") from error

    def append(self, cell: Cell) -> None:
        """Writes a cell to the CSV file."""
        self.cells.append(cell)
        record = asdict(cell)
        self._write_row(["" if record[name] is None else record[name] for name in COLUMNS])

    def describe(self, *, complete: bool, message: str) -> None:
        """Writes the JSON file, whole or not at all.

        Args:
            complete: Whether everything that was asked for is there.
            message: How the run ended, in words.
        """
        now = datetime.datetime.now(datetime.timezone.utc)
        content = {
            "complete": complete,
            "message": message,
            "began": self._began.isoformat(timespec="seconds"),
            "seconds": round((now - self._began).total_seconds(), 1),
            **self._head,
            "cells": [asdict(cell) for cell in self.cells],
        }
        write_json(self.path / JSON, content)

    def _write_row(self, row: Iterable[object]) -> None:
        with (self.path / CSV).open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(row)


def default_folder(name: str) -> Path:
    """Where a run goes that names no folder: runs/NAME-DATE-TIME."""
    return Path("runs") / f"{name}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}"


def claim(path: Path, files: Iterable[str]) -> None:
    """Makes a folder for a run.

    Raises:
        FolderError: If it cannot be made, or holds one of the files already.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"Cannot write to {path}: {error.strerror or error}.") from error
    if any((path / file).exists() for file in files):
        raise FolderError(f"{path} already holds the results of a run: name another --output, or remove them.")


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_strict(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def revision() -> str | None:
    """The git revision of this code, with "+changes" where files differ from it; None outside of a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", Path(__file__).name):  # installed inside of somebody else's repository
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str | None]:
    """Versions of what the numbers depend on; None for what is not installed."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(device: torch.device) -> dict[str, Any]:
    """What a run runs on, for a `torch.device`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "system": platform.platform(),
        "device": str(device),
        "device_name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _strict(value: object) -> object:
    """The same without what strict JSON lacks: NaN and infinities become text."""
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
