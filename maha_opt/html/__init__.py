"""A run as one HTML page that holds its pictures; belongs to the extra ``study``."""

from maha_opt.html.runs import write_report

__all__ = ["write_report"]
