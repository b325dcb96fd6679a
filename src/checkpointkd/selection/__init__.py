"""Choose a teacher: rules (Algorithm 1 and alternatives), the pilot search, and tuning."""

from .rules import (
    NEED_NO_SCORES,
    RULES,
    Candidates,
    Choice,
    algorithm1_index,
    choose,
    fall_of_accuracy,
    get_rule,
    needs_scores,
    normalized,
    resamples,
)

__all__ = [
    "NEED_NO_SCORES",
    "RULES",
    "Candidates",
    "Choice",
    "algorithm1_index",
    "choose",
    "fall_of_accuracy",
    "get_rule",
    "needs_scores",
    "normalized",
    "resamples",
]
