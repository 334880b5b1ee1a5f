"""Solvers of your own for the command line: a file or module that calls `solvers.register_solver` when imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path


def load(name: str) -> None:
    """Imports a module by its name, or a Python file by its path, which ends in ``.py``.

    Raises:
        ValueError: If there is none, it cannot be imported, or another module has the name of the file.
    """
    path = Path(name)
    try:
        if path.suffix != ".py":
            importlib.import_module(name)
            return
        if path.stem in sys.modules:
            raise ValueError(f"--plugin {name}: there is a module named {path.stem!r} already; rename the file.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None  # the ending says how to load it
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        raise ValueError(f"--plugin {name} cannot be imported: {error}.") from error
