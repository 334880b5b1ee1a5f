"""Pictures, as matplotlib axes. The only package that imports matplotlib; it belongs to the extra ``study``."""

from maha_opt.plots.accuracy import accuracy_against_time, save_picture

__all__ = ["accuracy_against_time", "save_picture"]
