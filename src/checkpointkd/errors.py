"""What we say to users when their input can't be taken: the fact, their own words, the way out, in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake that the user can mend; the command prints its one sentence and ends with exit code 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    r"""The text on one line, without what a terminal would obey: names come from files, and files from anywhere.

    >>> print(printable("weights\x1b[2J"))
    weights\x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class Diverged(UserError):  # noqa: N818 - reads as what it is where it is raised and caught
    """Training left the numbers: another learning rate, or other settings, may not."""


class NoSuchEpoch(UserError, KeyError):  # noqa: N818 - reads as what it is where it is raised and caught
    """A trajectory was asked for an epoch that it hasn't saved."""

    __str__ = ValueError.__str__  # KeyError's would quote the sentence


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that isn't in a table of ours, with the nearest names.

    >>> print(unknown("data set", "digit", ["digits", "cifar100"]))
    unknown data set 'digit'; did you mean 'digits'? (known: digits, cifar100)
    """
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return UserError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


def pluralize(number: int, what: str) -> str:
    """A number of things, in words that agree.

    >>> counted(1, "epoch"), counted(2, "epoch")
    ('1 epoch', '2 epochs')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """What an error that isn't ours says, on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_exists(path: Path, what: str) -> Path:
    """The path itself, or the error that says that there is no such file or folder."""
    try:
        if not path.exists():
            raise UserError(f"there is no {what} at {path}")
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise UserError(f"the {what} at {path} can't be looked at: {error.strerror}") from None
    return path
