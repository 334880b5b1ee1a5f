"""Text as bytes: the novel that comes with the package, or a file of the user's own."""

from __future__ import annotations

import gzip
import lzma
import zlib
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO, cast

NOVEL = "northanger_abbey.txt.gz"
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a file, plain or compressed, may raise."""


class TextError(ValueError):
    """A text that cannot be used; the message says why and what to do."""


def novel() -> bytes:
    """Jane Austen's *Northanger Abbey* (1817, public domain), about 433,000 bytes of UTF-8.

    >>> novel()[:16].decode()
    'NORTHANGER ABBEY'
    """
    return gzip.decompress(files("maha_opt").joinpath("data", NOVEL).read_bytes())


def read_text(path: Path | str) -> bytes:
    """The bytes of a UTF-8 text file, without a byte order mark; a byte is a token.

    Args:
        path: The file; where its name ends in .gz, .xz or .bz2 it is decompressed.

    Raises:
        TextError: If it is missing, not a file, not readable, empty or not UTF-8.
    """
    import fsspec  # which torch brings

    path = Path(path)
    if not path.exists():
        raise TextError(f"There is no file {path}.")
    if path.is_dir():
        raise TextError(f"{path} is a folder, not a text file.")
    try:
        with fsspec.open(str(path), "rb", compression="infer") as file:
            content = cast(BinaryIO, file).read()
    except UNREADABLE as error:
        raise TextError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path} is not UTF-8 text: byte 0x{content[error.start]:02x} at position {error.start} does not belong "
            "there. Convert it first, for example with iconv."
        ) from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise TextError(f"{path} is empty.")
    return content
