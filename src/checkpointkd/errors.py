"""Errors for users: what is wrong, with the user's own value, then what to do. Also the small words that they need."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

READER_KILLED = (
    "A process that reads images was killed, probably for lack of memory or of shared memory (/dev/shm). Repeat the "
    "command to continue. With CHECKPOINTKD_WORKERS=1, only one process reads images."
)


class UserError(ValueError):
    """A mistake that the user can correct. The command line prints it in one line and exits with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InUse(UserError):  # noqa: N818 - reads well where it is raised and caught
    """Another process works in the folder."""


class Diverged(UserError):  # noqa: N818 - reads well where it is raised and caught
    """Training diverged: the loss or the logits became NaN or infinite."""


class NoSuchEpoch(UserError, KeyError):  # noqa: N818 - reads well where it is raised and caught
    """A trajectory has no checkpoint of the epoch."""

    __str__ = ValueError.__str__  # KeyError's puts the message in quotation marks


def printable(text: str) -> str:
    r"""Return the text on one line, with control characters escaped: names may come from files of unknown origin.

    >>> print(printable("weights\x1b[2J"))
    weights\x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def print_message(text: str, end: str = "\n") -> None:
    """Print to standard error. A message that cannot be written, as on a full disk, does not stop the work."""
    try:
        if sys.stderr is not None:
            print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: Any) -> None:
    """Discard all further output of a standard stream, and its buffer, which Python would write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not among the known ones, with the nearest of them.

    >>> print(unknown_name("data set", "digit", ["digits", "cifar100"]))
    Unknown data set 'digit'. Did you mean 'digits'? Known: digits, cifar100
    """
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return UserError(f"Unknown {kind} {name!r}. {hint}Known: {', '.join(known)}")


def check_exists(path: Path, kind: str) -> Path:
    """Return the path of a file or folder of this kind.

    Raises:
        UserError: If it does not exist or cannot be accessed.
    """
    try:
        if not path.exists():
            raise UserError(f"There is no {kind} at {path}")
    except OSError as error:  # a name that is too long, or a folder without permission
        raise UserError(f"The {kind} at {path} cannot be accessed: {error.strerror}") from None
    return path


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's class if it has none.

    >>> first_line(RuntimeError("out of memory\\nat line 7")), first_line(EOFError())
    ('out of memory', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> pluralize(1, "epoch"), pluralize(2000, "epoch")
    ('1 epoch', '2,000 epochs')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a duration in minutes or hours.

    >>> duration(90), duration(5400), duration(90 * 3600)
    ('2 minutes', '1.5 hours', '90 hours')
    """
    if seconds < 3600:
        return pluralize(max(1, round(seconds / 60)), "minute")
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 10 else f"{hours:,.0f} hours"


def format_bytes(number: int) -> str:
    """Return a size in decimal megabytes or gigabytes.

    >>> format_bytes(12_300_000), format_bytes(1_700_000_000)
    ('12.3 MB', '1.7 GB')
    """
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
