"""The prior of the pilot search, from earlier experiments.

The means are those of the first teacher of the presets `overfit` and `few-images` (`benchmarks/search_prior.py`). The
spreads were chosen on the same two teachers. They are wide, because other settings differ from both.
"""

from __future__ import annotations

from .effects import Prior, Spread

FITTED_ON = ("overfit", "few-images")  # presets, with their first teacher

PRIOR = Prior(
    method_gain={
        "kd, α 0.1": -0.4,
        "dkd": 2.1,
        "dist": 4.6,
        "lskd": 3.7,
        "wttm": 6.2,
        "mlkd-ls": -0.2,
        "no teacher": -4.8,
    },
    teachers_gain={"earlier": -0.9, "several": 0.2, "average": -2.1},
    gain=Spread(method=2.0, teachers=1.0, rest=0.6),
    slope=0.35,
    bias_of_method={
        "kd, α 0.1": -0.2,
        "dkd": -0.9,
        "dist": 0.3,
        "lskd": -0.4,
        "wttm": -0.1,
        "mlkd-ls": -0.8,
        "no teacher": 1.5,
    },
    bias_of_teachers={"earlier": -0.1, "several": -0.3, "average": 0.5},
    bias=Spread(method=0.8, teachers=0.3, rest=0.4),
    noise=0.7,
)
