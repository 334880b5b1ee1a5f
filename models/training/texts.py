"""Texts and tables to learn from: files, folders, and data sets by name, split into parts."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from maha_opt.text import UNREADABLE, TextError, novel, read_text

__all__ = ["Parts", "read_columns", "read_parts", "text_files"]

ENDINGS = (".txt", ".txt.gz", ".txt.xz", ".txt.bz2", ".md")
"""Of files in a folder that count as text."""


class Parts(NamedTuple):
    """Texts to learn from and texts to judge by, UTF-8."""

    train: list[bytes]
    validation: list[bytes]


def read_parts(
    paths: Sequence[Path] = (),
    validation: Sequence[Path] = (),
    *,
    dataset: str | None = None,
    column: str = "text",
    held_out: float = 0.05,
) -> Parts:
    """Texts of files, folders or a data set; of the novel that comes with the package if nothing is named.

    Args:
        paths: Text files, plain or compressed, and folders of such.
        validation: The same, to judge by. If omitted, the end of every text is held out.
        dataset: Name of a data set that `datasets.load_dataset` takes, or name:configuration; in place of files.
        column: Where its texts stand.
        held_out: Part of every text that is held out where nothing else says what to judge by.

    Raises:
        TextError: A text is missing, cannot be read, or is empty; or both files and a data set are named.
    """
    if not 0 < held_out < 1:
        raise TextError(f"held_out must be between 0 and 1, but got {held_out}.")
    if dataset is not None:
        if paths or validation:
            raise TextError("Name either text files or a data set, not both.")
        return _held_out_unless_given(*_load_dataset(dataset, column), held_out)
    train = [read_text(path) for path in text_files(paths)] if paths else [novel()]
    return _held_out_unless_given(train, [read_text(path) for path in text_files(validation)], held_out)


def text_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and those in the folders that are named, in the order of their names.

    Raises:
        TextError: A folder holds no text.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.rglob("*") if file.name.endswith(ENDINGS))
        if not found:
            raise TextError(f"The folder {path} holds no text: no file ends in {', '.join(ENDINGS)}.")
        files += found
    return files


def read_columns(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Columns of a table in a .csv, .tsv, .jsonl or .parquet file, plain or compressed, as text.

    Args:
        path: The file.
        columns: Names that stand in its first line; or numbers from 0, where it has no such line.

    Raises:
        TextError: It is missing, cannot be read or is empty, there is no such column, or a cell of it is empty.
    """
    import pandas as pd

    if not path.is_file():
        raise TextError(f"There is no file {path}.")
    kinds = [ending.lstrip(".") for ending in path.suffixes]
    numbered = all(column.isdecimal() for column in columns)
    first = None if numbered else 0
    try:
        if "parquet" in kinds:
            table = pd.read_parquet(path)
        elif "jsonl" in kinds:
            table = pd.read_json(path, lines=True)
        elif "csv" in kinds:
            table = pd.read_csv(path, header=first)
        elif "tsv" in kinds:
            table = pd.read_csv(path, header=first, sep="\t", quoting=csv.QUOTE_NONE)
        else:
            raise TextError(f"{path} must end in .csv, .tsv, .jsonl or .parquet, and may be compressed.")
    except (*UNREADABLE, ValueError) as error:
        if isinstance(error, TextError):
            raise
        raise TextError(f"{path} cannot be read: {error}.") from error
    if table.empty:
        raise TextError(f"{path} holds no rows.")
    chosen = []
    for column in columns:
        name = int(column) if numbered else column
        if name not in table.columns:
            raise TextError(f"{path} has no column {name!r}, but {', '.join(map(repr, table.columns))}.")
        cells = table[name]
        if bool(cells.isna().any()):
            raise TextError(f"{path} has an empty cell in column {name!r}, row {int(cells.isna().argmax())}.")
        chosen.append([str(cell) for cell in cells])
    return chosen


def _load_dataset(name: str, column: str) -> tuple[list[bytes], list[bytes]]:
    import datasets

    path, _, configuration = name.partition(":")
    try:
        parts = datasets.load_dataset(path, configuration or None)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise TextError(f"The data set {name} cannot be loaded: {' '.join(str(error).split())}") from error
    if not isinstance(parts, datasets.DatasetDict) or "train" not in parts:
        raise TextError(f"The data set {name} has no part 'train'.")

    def texts(part: str) -> list[bytes]:
        if part not in parts:
            return []
        if column not in parts[part].column_names:
            raise TextError(f"The data set {name} has no column {column!r}, but {parts[part].column_names}.")
        return ["\n".join(parts[part][column]).encode()]

    return texts("train"), texts("validation")


def _held_out_unless_given(train: list[bytes], validation: list[bytes], held_out: float) -> Parts:
    if validation:
        return Parts(train, validation)
    cuts = [_character_border(text, round(len(text) * (1 - held_out))) for text in train]
    parts = Parts(
        [text[:cut] for text, cut in zip(train, cuts, strict=True)],
        [text[cut:] for text, cut in zip(train, cuts, strict=True)],
    )
    if not any(parts.train) or not any(parts.validation):
        raise TextError("There is too little text to hold some of it out.")
    return parts


def _character_border(text: bytes, cut: int) -> int:
    """`cut`, or the next place that is not within a character of UTF-8."""
    while cut < len(text) and text[cut] & 0xC0 == 0x80:
        cut += 1
    return cut
