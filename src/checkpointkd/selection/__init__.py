"""Algorithm 1 and its rivals."""

from .rules import NEED_NO_SCORES, RULES, Candidates, Choice, algorithm_1, choose, normalised, resamples

__all__ = ["NEED_NO_SCORES", "RULES", "Candidates", "Choice", "algorithm_1", "choose", "normalised", "resamples"]
