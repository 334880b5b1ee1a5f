"""Pictures, as matplotlib axes. The only package that imports matplotlib; it belongs to the extra ``study``."""

from maha_opt.plots.accuracy import accuracy_against_time, save_picture
from maha_opt.plots.convergence import convergence_curves, save_convergence
from maha_opt.plots.game import two_player_game
from maha_opt.plots.gradients import gradient_error_against_iterations
from maha_opt.plots.path import solution_path_curves
from maha_opt.plots.simplex import simplex_of_three

__all__ = [
    "accuracy_against_time",
    "convergence_curves",
    "gradient_error_against_iterations",
    "save_convergence",
    "save_picture",
    "simplex_of_three",
    "solution_path_curves",
    "two_player_game",
]
