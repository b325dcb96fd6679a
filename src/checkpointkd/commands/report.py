"""`checkpointkd report`: write one HTML page on the runs of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .options import CommonOptions
from .signature import command


@dataclass(frozen=True, kw_only=True)
class ReportOptions(CommonOptions):
    """Options of `report`."""

    out: Path | str | None = None
    """The HTML file. Default: report.html in the folder."""


@command(ReportOptions)
def report(folder: Path | str, /, *, options: ReportOptions) -> Path:
    """Write a report on every run in a folder, as one HTML file that works offline.

    Example:

        checkpointkd report runs/demo --out report.html

    Args:
        folder: A run directory, or a folder with several.

    Raises:
        UserError: If there is no run in the folder.
    """
    from ..reports.build import write_report

    return write_report(Path(folder), out=Path(folder) / "report.html" if options.out is None else Path(options.out))
