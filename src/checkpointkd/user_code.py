"""Import a network or a distillation method that a user names as `package.module:NAME`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from .errors import UserError, first_line


def import_object(name: str, *, kind: str) -> Any:
    """Return the object that `package.module:NAME` names. This runs the user's code.

    Args:
        name: The name, with a colon.
        kind: The kind of object, for errors: "Model" or "Method".

    Raises:
        UserError: If the module or the object cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    with current_folder_last():
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # the user's module may raise anything
            raise UserError(
                f"{kind} {name!r} cannot be imported: {first_line(error)}. Python searches its import path, then the "
                "current folder."
            ) from None


@contextlib.contextmanager
def current_folder_last() -> Iterator[None]:
    """Search the current folder after the import path. Outside this context, no module comes from that folder."""
    here = os.getcwd()
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        if here in sys.path:  # the user's code may change the path
            sys.path.remove(here)
