"""Let a command be called with flat keywords, while its function takes one options object.

The options of a command are a frozen dataclass, put together from the shared groups in `options.py`. `command` turns
`train(model, *, options)` into `train(model, *, data, out, epochs=None, ...)`. `inspect.signature`, `help()` and the
command line read that flat signature, so each option has one declaration, one default and one text.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, get_type_hints, overload

P = ParamSpec("P")
Options = TypeVar("Options")
OptionsIn = TypeVar("OptionsIn", contravariant=True)
OptionsOut = TypeVar("OptionsOut", covariant=True)
Target = TypeVar("Target")
TargetIn = TypeVar("TargetIn", contravariant=True)
Result = TypeVar("Result")
ResultOut = TypeVar("ResultOut", covariant=True)


class _OneTarget(Protocol[TargetIn, OptionsIn, ResultOut]):
    def __call__(self, target: TargetIn, /, *, options: OptionsIn) -> ResultOut: ...


class _ManyTargets(Protocol[OptionsIn, ResultOut]):
    def __call__(self, *targets: str, options: OptionsIn) -> ResultOut: ...


class _Decorator(Protocol[P, OptionsOut]):
    """Type checkers know the keywords of a command with one target. Python's types cannot express the others."""

    @overload
    def __call__(self, function: _ManyTargets[Any, Result], /) -> Callable[..., Result]: ...
    @overload
    def __call__(self, function: _OneTarget[Target, Any, Result], /) -> Callable[Concatenate[Target, P], Result]: ...


@dataclasses.dataclass(frozen=True)
class Option:
    """One option: its parameter in the flat signature, its help text, and the heading under which help shows it."""

    parameter: inspect.Parameter
    text: str
    heading: str | None


def command(options_type: Callable[P, Options]) -> _Decorator[P, Options]:
    """Return a decorator that makes `function(*targets, options=...)` callable with the options as flat keywords.

    An unknown keyword raises TypeError, which names the nearest option.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        options = options_of(options_type)
        targets = [
            parameter.replace(annotation=eval(parameter.annotation, function.__globals__))
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name != "options"
        ]
        signature = inspect.Signature([*targets, *(option.parameter for option in options)])

        @functools.wraps(function)
        def flat(*arguments: Any, **keywords: Any) -> Any:
            try:
                bound = signature.bind(*arguments, **keywords)
            except TypeError as error:
                raise TypeError(f"{function.__name__}(): {error}{_nearest(keywords, signature)}") from None
            return function(*bound.args, options=options_type(**bound.kwargs))  # pyright: ignore[reportCallIssue]

        flat.__signature__ = signature.replace(return_annotation=function.__annotations__.get("return"))  # type: ignore[attr-defined]
        flat.__doc__ = _with_options(function.__doc__ or "", options)
        flat.options = options  # type: ignore[attr-defined]
        return flat

    return decorate  # pyright: ignore[reportReturnType]


def options_of(options_type: Any) -> list[Option]:
    """List a dataclass's options: its own first, then those of each base class under that class's heading."""
    types, texts = get_type_hints(options_type), _texts(options_type)
    options: dict[str, Option] = {}
    for group in (options_type, *options_type.__bases__):
        heading = None if group is options_type else (group.__doc__ or "").partition("\n")[0].rstrip(".")
        for part in (options_type,) if group is options_type else group.__mro__:
            for name in inspect.get_annotations(part):
                if name not in options:
                    options[name] = Option(_parameter(options_type, name, types[name]), texts.get(name, ""), heading)
    return list(options.values())


def _parameter(options_type: Any, name: str, annotation: Any) -> inspect.Parameter:
    default = options_type.__dataclass_fields__[name].default
    default = inspect.Parameter.empty if default is dataclasses.MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _texts(options_type: Any) -> dict[str, str]:
    """Return the text below each field of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(options_type.__mro__):
        texts |= _texts_in(base.__module__).get(base.__name__, {})
    return texts


@functools.cache
def _texts_in(module: str) -> dict[str, dict[str, str]]:
    """Read the strings below the fields of a module's classes. Python keeps them in the source only."""
    source = getattr(sys.modules[module], "__file__", None)
    if source is None or not Path(source).is_file():
        return {}
    texts: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(source).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    text = below.value.value if _is_text(below) else None  # type: ignore[attr-defined]
                    if text is not None:
                        texts.setdefault(node.name, {})[field.target.id] = " ".join(text.split())
    return texts


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _with_options(doc: str, options: list[Option]) -> str:
    """Add the options to the `Args` section of a docstring in Google style."""
    doc = inspect.cleandoc(doc)
    head, separator, tail = doc.partition("\n\nRaises:")
    if "\nArgs:" not in head:
        head += "\n\nArgs:"
    lines = [
        textwrap.fill(f"{option.parameter.name}: {option.text}", 110, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for option in options
    ]
    return "\n".join([head, *lines]) + separator + tail


def _nearest(keywords: dict[str, Any], signature: inspect.Signature) -> str:
    """Return a hint that names the option nearest to the first unknown keyword."""
    for keyword in keywords:
        if keyword not in signature.parameters:
            near = difflib.get_close_matches(keyword, signature.parameters, n=1, cutoff=0.5)
            return f". Did you mean {near[0]!r}?" if near else ""
    return ""
