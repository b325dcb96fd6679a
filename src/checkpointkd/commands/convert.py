"""`checkpointkd convert`: write external checkpoints as safetensors files that know their epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import CommonOptions
from .signature import command


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(CommonOptions):
    """Options of `convert`."""

    out: Path | str
    """The folder to write."""

    pattern: str | None = None
    """The form of the file names, such as 'ckpt_{epoch}.pt', as for `inspect`."""

    state_dict_key: str | None = None
    """Keep only the weights at this key, such as state_dict_ema. Default: keep all weights."""


@command(ConvertOptions)
def convert(path: Path | str, /, *, options: ConvertOptions) -> dict[str, Any]:
    """Convert checkpoints of any trainer to safetensors, without the libraries that wrote them.

    No code in the files is run. The states of optimizers are left out. `inspect`, `score`, `select` and `distill` take
    the new folder as external checkpoints. Repeat the command after an interruption: it continues.

    Example:

        checkpointkd convert lightning_logs/version_0/checkpoints --out converted

    Args:
        path: The folder; or a pattern, such as 'output/run1_*.pth'; or one file.

    Raises:
        UserError: If a file is damaged, if the folder `out` holds something else, or if there is no checkpoint.
    """
    from .. import records
    from ..checkpoints.conversion import convert_folder

    record = convert_folder(
        path,
        out=Path(options.out),
        pattern=options.pattern,
        state_dict_key=options.state_dict_key,
        on_progress=options.on_progress,
    )
    return {"folder": str(options.out), **records.plain(record)}
