"""The folder of a sweep: one parquet file for each finished cell, written whole or not at all, so that it can go on."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from maha_opt.run_folder import LOCK, FolderError, write_json

JSON, TABLE, CELLS = "sweep.json", "results.parquet", "cells"

IDENTITY = ("settings", "problems", "seeds", "versions", "revision")
"""What has to be the same for a sweep to go on."""


class SweepFolder:
    """The results of a sweep, as far as it has come.

    Args:
        path: The folder, made if it is missing.
        description: What the sweep is, in terms of JSON; with the keys of `IDENTITY`.

    Raises:
        FolderError: If the folder cannot be written, or holds a sweep of another description, or another run.
    """

    def __init__(self, path: Path, description: Mapping[str, object]) -> None:
        self.path = path
        head = path / JSON
        try:
            if head.exists():
                _check_same(path, json.loads(head.read_text(encoding="utf-8")), description)
            elif path.exists() and any(entry.name != LOCK for entry in path.iterdir()):
                raise FolderError(f"{path} already holds something else: name another folder.")
            (path / CELLS).mkdir(parents=True, exist_ok=True)
            if not head.exists():
                write_json(head, description)
        except FolderError:
            raise
        except (OSError, ValueError) as error:
            raise FolderError(f"Cannot use {path}: {error}.") from error

    def finished(self) -> set[int]:
        """Numbers of the cells that are there."""
        return {int(file.stem) for file in (self.path / CELLS).glob("*.parquet")}

    def add(self, number: int, table: pd.DataFrame) -> None:
        """Writes a cell."""
        _write(table, self.path / CELLS / f"{number:06}.parquet")

    def collect(self) -> pd.DataFrame:
        """All cells so far as one table, in their order; writes it beside them."""
        table = cells_of(self.path)
        _write(table, self.path / TABLE)
        return table


def cells_of(path: Path) -> pd.DataFrame:
    """The cells of a sweep's folder as one table, in their order; empty if there are none."""
    files = sorted((path / CELLS).glob("*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True) if files else pd.DataFrame()


def _write(table: pd.DataFrame, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    table.to_parquet(partial, index=False)
    partial.replace(path)


def _check_same(path: Path, there: Mapping[str, object], asked: Mapping[str, object]) -> None:
    asked = json.loads(json.dumps(asked))  # tuples become lists
    differences = [words for key in IDENTITY for words in _differences(key, there.get(key), asked.get(key))]
    if differences:
        raise FolderError(
            f"{path} holds a sweep that differs from this one in {'; '.join(differences)}. Go on with what it was "
            "begun with, or name another folder."
        )


def _differences(name: str, there: object, asked: object) -> list[str]:
    """What differs, at the deepest level that has names."""
    if isinstance(there, dict) and isinstance(asked, dict):
        names = dict.fromkeys((*there, *asked))
        return [words for key in names for words in _differences(f"{name}.{key}", there.get(key), asked.get(key))]
    return [] if there == asked else [f"{name} ({there!r} there, {asked!r} here)"]
