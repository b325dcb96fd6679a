"""Algorithm 1 and its rivals."""

from .rules import (
    NEED_NO_SCORES,
    RULES,
    Candidates,
    Choice,
    algorithm1_index,
    choose,
    normalized,
    resamples,
)

__all__ = ["NEED_NO_SCORES", "RULES", "Candidates", "Choice", "algorithm1_index", "choose", "normalized", "resamples"]
