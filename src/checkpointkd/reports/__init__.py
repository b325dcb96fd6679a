"""Reports on what runs leave on disk: data first (`collect`, `tables`, `figures`), then pages (`build`, `page`)."""

from __future__ import annotations

from .build import (
    conclusions,
    preset_sentence,
    shared_notes,
    student_rows,
    write_correlation,
    write_report,
)
from .collect import Collected, Scored, collect
from .page import refuse_others
from .variants import Difference, Variant, difference

__all__ = [
    "Collected",
    "Difference",
    "Scored",
    "Variant",
    "collect",
    "conclusions",
    "difference",
    "preset_sentence",
    "refuse_others",
    "shared_notes",
    "student_rows",
    "write_correlation",
    "write_report",
]
