"""How many processes and threads may decode images."""

from __future__ import annotations

import os
import re

from ..errors import UserError


def usable_cpus() -> int:
    """Return how many CPUs this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers() -> int:
    """Return how many processes decode: `CHECKPOINTKD_WORKERS`, else one for each usable CPU, at most 16.

    Processes of one machine that train together share its CPUs.

    The number changes the speed and no image.
    """
    setting = os.environ.get("CHECKPOINTKD_WORKERS")
    if setting is None:
        local = os.environ.get("LOCAL_WORLD_SIZE", "")  # as torchrun sets it
        return max(1, min(16, usable_cpus() // (int(local) if local.isdecimal() and int(local) else 1)))
    if re.fullmatch("[0-9]{1,3}", setting) is None:
        raise UserError(f"CHECKPOINTKD_WORKERS must be a number of processes from 0 to 999, not {setting[:20]!r}")
    return int(setting)
