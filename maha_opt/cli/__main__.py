"""``python -m maha_opt.cli``, for launchers that start a module."""

from maha_opt.cli import app

app()
