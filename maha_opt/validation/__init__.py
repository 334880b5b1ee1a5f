from maha_opt.validation.random_problems import Difficulty
__all__=["Difficulty"]
