"""What earlier experiments say about ways to teach: the prior of the pilot search.

The numbers are means over students of `checkpointkd reproduce selection`, from the teachers that the search is not
reported on. docs/selection.md has the commands.
"""

from __future__ import annotations

from .effects import Prior, Spread

PRIOR = Prior(
    method_gain={
        "dist": 2.0,
        "dkd": 2.0,
        "lskd": 1.5,
        "mlkd-ls": 2.0,
        "kd, α 0.1": 1.0,
        "wttm": 1.0,
        "no teacher": -4.0,
    },
    teachers_gain={"average": 0.0, "several": 0.0, "earlier": -0.5},
    gain=Spread(method=2.0, teachers=1.0, rest=0.5),
    slope=0.6,
    bias_of_method={},
    bias_of_teachers={},
    bias=Spread(method=1.0, teachers=0.5, rest=0.5),
    noise=0.7,
)
