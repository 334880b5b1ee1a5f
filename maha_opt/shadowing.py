"""Our packages have plain names: notice when a folder of the user's own is found in place of one of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

OURS = {"solvers": "standard_form.py", "models": "decomposition.py"}
"""Packages that come with this one, each with a file by which it is known wherever it is installed."""


def require_ours(package: str) -> None:
    """Checks that `solvers` or `models`, as python finds it here, is ours; does not import it.

    Raises:
        ImportError: It is not, or is missing. The message names the folder that is in the way.
    """
    found = _folder(package)
    here = Path(__file__).parent
    if found is None:
        raise ImportError(f"maha_opt needs the package {package!r} that is installed with it, and python finds none.")
    if found.parent.resolve() != here.parent.resolve() and not (found / OURS[package]).is_file():
        raise ImportError(
            f"maha_opt needs its own package {package!r}, but python finds {found} under that name. "
            f"Rename that folder or file, or start python where it is not on the path ({found.parent} is, perhaps "
            "because it is the current directory or in PYTHONPATH)."
        )


def _folder(package: str) -> Path | None:
    """Where python would import a package from: its folder, or the file of a module."""
    module = sys.modules.get(package)
    spec = getattr(module, "__spec__", None) if module else importlib.util.find_spec(package)
    if spec is None:
        file = getattr(module, "__file__", None)
        return Path(file) if file else None
    folders = list(spec.submodule_search_locations or ())
    if folders:
        return Path(folders[0])
    return Path(spec.origin) if spec.origin else None
