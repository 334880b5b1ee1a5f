"""Pictures, as matplotlib axes. The only package that imports matplotlib; it belongs to the extra ``study``."""

from maha_opt.plots.accuracy import accuracy_against_time, save_picture
from maha_opt.plots.inside import attention_maps, scale_use, weights_over_text

__all__ = ["accuracy_against_time", "attention_maps", "save_picture", "scale_use", "weights_over_text"]
