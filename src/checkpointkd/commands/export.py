"""`checkpointkd export`: write a network as a folder that loads anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import CommonOptions
from .signature import command


@dataclass(frozen=True, kw_only=True)
class ExportOptions(CommonOptions):
    """Options of `export`."""

    out: Path | str
    """The folder to write."""

    onnx: bool = False
    """Also write model.onnx, for any batch size, and compare its predictions with PyTorch's."""

    push: str | None = None
    """Upload the folder to the Hugging Face Hub under this name, such as me/student."""

    public: bool = False
    """Make the repository on the Hub public. Default: private."""


@command(ExportOptions)
def export(reference: str, /, *, options: ExportOptions) -> dict[str, Any]:
    """Write a network as a folder in the layout of the Hugging Face Hub.

    In Python, `checkpointkd.load(FOLDER)` returns the network. The folder also records the teachers and the method.

    Example:

        checkpointkd export runs/student --out student --onnx

    Args:
        reference: The checkpoint: a run directory for its last one, or RUN@160, RUN@0.5, RUN@midpoint, RUN@best.

    Raises:
        UserError: If the reference names no checkpoint, if the folder holds other files, or if ONNX or the Hub fails.
    """
    from ..exporting import push, write_export

    out = Path(options.out)
    written = write_export(reference, out=out, onnx=options.onnx)
    hub = None if options.push is None else push(out, options.push, private=not options.public)
    return {**written, "hub": hub}
