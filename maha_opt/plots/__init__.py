"""Pictures, as matplotlib axes. The only package that imports matplotlib; it belongs to the extra ``study``."""

from maha_opt.plots.accuracy import accuracy_against_time, save_picture
from maha_opt.plots.convergence import convergence_curves, save_convergence
from maha_opt.plots.game import two_player_game
from maha_opt.plots.gradients import gradient_error_against_iterations, weight_error_against_iterations
from maha_opt.plots.inside import attention_maps, scale_use, weights_over_text
from maha_opt.plots.path import solution_path_curves
from maha_opt.plots.simplex import simplex_of_three
from maha_opt.plots.training import loss_curve, save_curve

__all__ = [
    "accuracy_against_time",
    "attention_maps",
    "convergence_curves",
    "gradient_error_against_iterations",
    "loss_curve",
    "save_convergence",
    "save_curve",
    "save_picture",
    "scale_use",
    "simplex_of_three",
    "solution_path_curves",
    "two_player_game",
    "weight_error_against_iterations",
    "weights_over_text",
]
