"""Format the `train` or `distill` command that uses a result of the pilot search or of tuning."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..distill_config import DistillConfig, KDConfig
from ..training.distillation import DistillSpec
from ..training.run import RunSpec

DEFAULTS = {  # of the options of `train` and `distill`; a command leaves them out
    "method": DistillSpec.method,
    "average": KDConfig.average,
    "tau_squared": KDConfig.tau_squared,
    "teacher_schedule": DistillConfig.teacher_schedule,
    "teacher_tau": DistillConfig.teacher_tau,
    "teacher_batch_norm": DistillConfig.teacher_batch_norm,
    "channel_adapter": DistillConfig.channel_adapter,
    "logit_cache_gb": DistillSpec.logit_cache_gb,
    "allow_weak_teacher": DistillSpec.allow_weak_teacher,
    "seed": RunSpec.seed,
    "precision": RunSpec.precision,
    "device": "auto",
}


def format_command(arguments: Sequence[str], options: Mapping[str, Any]) -> str:
    """Return a `checkpointkd` command with its options, except for those that are None or have their default value.

    The command writes to `OUT`, which the user replaces.

    >>> format_command(["train", "wrn_10_1"], {"data": "digits", "epochs": 5, "seed": 0, "alpha": None})
    'checkpointkd train wrn_10_1 --data digits --epochs 5 --out OUT'
    """
    words = ["checkpointkd", *arguments]
    for name, value in options.items():
        if value is None or value == DEFAULTS.get(name):
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            values = value if isinstance(value, list | tuple) else [value]
            words += [option, *(format_number(item) if isinstance(item, float) else str(item) for item in values)]
    return shlex.join([*words, "--out", "OUT"])


def format_number(value: float) -> str:
    """Return a number with all of its digits, but integers without a decimal point.

    >>> format_number(4.0), format_number(0.1)
    ('4', '0.1')
    """
    return repr(value).removesuffix(".0")
