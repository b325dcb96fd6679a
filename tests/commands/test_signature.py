"""Flat keywords in Python, one options object inside."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import checkpointkd as ckd
from checkpointkd.commands.signature import command, options_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrushOptions:
    """Brush."""

    width: int = 3
    """Width in
    pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaintOptions(BrushOptions):
    """Options of `paint`."""

    color: str
    """The color."""


@command(PaintOptions)
def paint(wall: str, /, *, options: PaintOptions) -> str:
    """Paint a wall.

    Args:
        wall: The wall.

    Raises:
        ValueError: Never.
    """
    return f"{wall} {options.color} {options.width}"


def test_keywords_are_flat():
    assert paint("north", color="red") == "north red 3"
    assert paint("north", width=5, color="red") == "north red 5"


def test_the_signature_and_the_docstring_have_every_option_once():
    assert list(inspect.signature(paint).parameters) == ["wall", "color", "width"]
    assert inspect.signature(paint).parameters["width"].default == 3
    assert inspect.signature(paint).parameters["color"].default is inspect.Parameter.empty
    assert paint.__doc__ == (
        "Paint a wall.\n\nArgs:\n    wall: The wall.\n    color: The color.\n    width: Width in pixels.\n\n"
        "Raises:\n    ValueError: Never."
    )


def test_options_have_the_heading_of_their_group():
    assert [(option.parameter.name, option.heading) for option in options_of(PaintOptions)] == [
        ("color", None),
        ("width", "Brush"),
    ]


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (["north"], {"colour": "red"}, r"paint\(\): .*'colou?r'.*Did you mean 'color'\?"),
        (["north"], {"color": "red", "wide": 2}, r"unexpected keyword argument 'wide'\. Did you mean 'width'\?"),
        (["north"], {}, "missing a required .*'color'"),
        ([], {"color": "red"}, "missing a required .*'wall'"),
        (["north", "south"], {"color": "red"}, "too many positional arguments"),
    ],
)
def test_wrong_keywords_raise_type_error(arguments: list, keywords: dict, message: str):
    with pytest.raises(TypeError, match=message):
        paint(*arguments, **keywords)


def test_the_commands_of_the_package_are_flat(capsys):
    with pytest.raises(
        TypeError, match=r"train\(\): got an unexpected keyword argument 'epoch'. Did you mean 'epochs'"
    ):
        ckd.train("wrn_10_1", data="digits", out="nowhere", epoch=3)
    assert {"data", "epochs", "out"} <= inspect.signature(ckd.train).parameters.keys()
    help(ckd.train)
    shown = capsys.readouterr().out
    assert "epochs: int | None = None" in shown
    assert "epochs: Number of epochs." in shown
