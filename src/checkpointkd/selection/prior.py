"""The prior of the pilot search, from earlier experiments.

The means come from the first teacher of the preset `overfit` (`benchmarks/search_prior.py`). For the methods in
docs/methods.md, they come from the preset `small` too. The spreads are wide, because other settings differ from both.
"""

from __future__ import annotations

from .effects import Prior, Spread

PRIOR = Prior(
    method_gain={
        "kd, α 0.1": 0.5,
        "dkd": 3.4,
        "dist": 4.0,
        "lskd": 2.7,
        "wttm": 4.1,
        "mlkd-ls": 0.0,
        "no teacher": -5.0,
    },
    teachers_gain={"earlier": -0.5, "several": -0.3, "average": -1.0},
    gain=Spread(method=2.0, teachers=0.8, rest=0.5),
    slope=0.55,
    bias_of_method={"dkd": -0.5, "lskd": -0.5, "mlkd-ls": -0.6, "wttm": 0.2, "dist": 0.2, "no teacher": 2.0},
    bias_of_teachers={},
    bias=Spread(method=0.5, teachers=0.3, rest=0.4),
    noise=0.5,
)
