"""What is worth saying of one run is too much of hundreds."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

log = logging.getLogger("checkpointkd")


@contextlib.contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Only warnings are said meanwhile."""
    level = log.level
    log.setLevel(logging.WARNING if wanted else level)
    try:
        yield
    finally:
        log.setLevel(level)
