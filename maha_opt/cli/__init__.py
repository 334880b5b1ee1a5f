"""The command line, ``maha-opt``: what its commands take, said without importing torch, so that ``--help`` is quick.

What they do is in `maha_opt.commands`, a module for each, which is imported when its command runs.
"""

from maha_opt.cli import studies, training, costs  # noqa: F401, I001 - in the order of the help
from maha_opt.cli.app import app

__all__ = ["app"]
