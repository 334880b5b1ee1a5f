"""The folder of a run, which one process at a time writes to; and what comparisons write to it.

Cells of a comparison go to a CSV file one by one, and a JSON file says what it was and how it ended.
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from maha_opt.cells import Cell

CSV, JSON, PICTURE = "results.csv", "results.json", "accuracy.png"
"""Files of ``maha-opt compare``."""

ERRORS, RATES, CONVERGENCE = "errors.parquet", "rates.parquet", "convergence.json"
"""Files of ``maha-opt convergence``, besides its picture."""

LOCK = ".lock"
"""File by which a process holds a folder. The lock ends with its process: a file that a kill has left holds nothing."""

PATIENCE = 1.0
"""Seconds to wait for a folder whose writer may be about to end."""

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


def new_folder(name: str) -> Path:
    """Makes a folder for a run that names none: runs/NAME-DATE-TIME, with a number behind it if there is one already.

    No two runs get the same, whenever and wherever they start.

    Raises:
        FolderError: If it cannot be made.
    """
    stem = f"{name}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}"
    for number in count(1):
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise FolderError(f"Cannot write to {path}: {error.strerror or error}.") from error
        return path
    raise AssertionError("unreachable")


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Holds a folder, made if it is missing, against other writers; a process that has ended holds none.

    Raises:
        FolderError: If another process, or another run of this one, writes to it, or it cannot be made.
    """
    lock = FileLock(path / LOCK, timeout=PATIENCE, thread_local=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FolderError(f"Another run is writing to {path}: wait for its end, or name another folder.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: this thread holds it already
        raise FolderError(f"Cannot write to {path}: {error}.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held; who waits for it looks whether the file is still there
            (path / LOCK).unlink()
        lock.release()


@contextmanager
def folder_for(name: str, output: Path | None) -> Iterator[Path]:
    """The folder of a run, held until it ends: the one that was named, or a new one for the name of the command.

    A new one in which nothing was written is removed.

    Raises:
        FolderError: As `new_folder` and `sole_writer`.
    """
    path = new_folder(name) if output is None else output
    try:
        with sole_writer(path):
            yield path
    finally:
        if output is None:
            remove_if_empty(path)


def remove_if_empty(path: Path) -> None:
    """Removes a folder that `new_folder` has made if there is nothing in it, and `runs` likewise."""
    with suppress(OSError):
        path.rmdir()
        path.parent.rmdir()


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
