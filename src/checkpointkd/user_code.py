"""Networks, methods, data sets, rules and estimators of the user, by name.

A name is `package.module:NAME`, which is imported, or `object:NAME`, which `named` has given to an object of this
process. No torch here.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

from .errors import UserError, first_line

log = logging.getLogger("checkpointkd")

OBJECT = "object:"  # before the name of an object of this process
_objects: dict[str, Any] = {}


def named(value: Any, name: str | None = None) -> str:
    """Return a name under which commands of this process find an object.

    Give the name to commands in place of the object. It becomes part of a run's identity. A later process must call
    `named` again, with the same name, before it uses the run. A function or class of an imported module needs no name:
    later processes import it.

    Args:
        value: A function that builds a network, or a method, rule or estimator.
        name: Its name. None: the name of the function or class.

    Raises:
        UserError: If the object has no name of its own, such as a lambda, and none is given.

    >>> named(lambda num_classes: None, "tiny")
    'object:tiny'
    >>> from checkpointkd.selection.rules import midpoint
    >>> named(midpoint)
    'checkpointkd.selection.rules:midpoint'
    """
    if name is None:
        path, module = str(getattr(value, "__qualname__", "")), str(getattr(value, "__module__", ""))
        if path.isidentifier() and module != "__main__" and getattr(sys.modules.get(module), path, None) is value:
            return f"{module}:{path}"
        name = path.rpartition(".")[-1]
        if not name.isidentifier():  # "<lambda>", or nothing
            raise UserError(f"{value!r} has no name. Give it one: checkpointkd.named(..., 'NAME')")
    if not (isinstance(name, str) and name and name.isprintable() and name.strip() == name):
        raise UserError(f"A name must be printable and on one line, not {name!r}")
    if name in _objects and _code(_objects[name]) != _code(value):
        log.warning(
            "%r named other code earlier in this process. A finished run of the earlier code is not trained again. "
            "Give another --out, or another name.",
            name,
        )
    _objects[name] = value
    return OBJECT + name


def _code(value: Any) -> Any:
    """Return what a function or a class does, so that an edited one differs; None for other objects."""
    if isinstance(value, type):
        return {name: _code(member) for name, member in vars(value).items() if callable(member)}
    code = getattr(value, "__code__", None)
    return None if code is None else _parts(code)


def _parts(code: CodeType) -> Any:
    constants = [_parts(constant) if isinstance(constant, CodeType) else repr(constant) for constant in code.co_consts]
    return code.co_code, code.co_names, constants


def name_of(value: Any) -> str:
    """Return a name as it is, and the name of any other object, see `named`."""
    return value if isinstance(value, str) else named(value)


def import_object(name: str, *, kind: str) -> Any:
    """Return the object that a name stands for. For `package.module:NAME` this runs the user's code.

    Args:
        name: The name, with a colon.
        kind: The kind of object, for errors: "Model" or "Method".

    Raises:
        UserError: If the module or the object cannot be imported, or if this process has no such object.
    """
    if name.startswith(OBJECT):
        if name.removeprefix(OBJECT) not in _objects:
            raise UserError(
                f"{kind} {name!r} is an object of the process that made the run. Make it again, and call "
                f"checkpointkd.named(..., {name.removeprefix(OBJECT)!r}) before this command."
            )
        return _objects[name.removeprefix(OBJECT)]
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
