"""The verbs that carry folders about: `pack`, `unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pack(folder: Path | str, /, *, out: Path | str, megabytes: float = 16.0) -> dict[str, Any]:
    """Write a folder as pieces of a chosen size, to be carried elsewhere; again, and only what is new is added.

    Tables of teachers' answers lie elsewhere and are made anew; reports are left out.

    Example:

        checkpointkd pack studies/paper --out pieces

    Parameters
    ----------
    folder
        What is packed: a folder of studies, of runs, of anything.
    out
        The folder of the pieces and of their index.
    megabytes
        How large a piece may be.

    Raises
    ------
    UserError
        When something in the folder changes meanwhile.
    """
    from .. import pieces

    return pieces.pack(Path(folder), out=Path(out), megabytes=megabytes)


def unpack(pieces: Path | str, /, *, out: Path | str) -> dict[str, Any]:
    """Put a folder together again from its pieces; one that has an earlier state of it is brought up to date.

    Example:

        checkpointkd unpack pieces --out studies/paper

    Parameters
    ----------
    pieces
        The folder of the pieces.
    out
        The folder that was packed.

    Raises
    ------
    UserError
        For pieces that are damaged or missing, and where the folder has what was never packed.
    """
    from .. import pieces as of_folders

    return of_folders.unpack(Path(pieces), out=Path(out))
