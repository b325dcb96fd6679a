"""Read the pickles of old data sets: arrays and containers, and nothing that could run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]

from ..errors import UserError


def _latin1(text: str, encoding: str) -> bytes:
    """Encode as Python 3 writes bytes in the old protocol; `codecs.encode` itself could do more."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


_HARMLESS = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _HARMLESS[module, name]


def read_pickle(path: Path) -> Any:
    """Return the arrays and containers of a pickle, with Python 2's strings as bytes.

    Raises:
        UserError: If the pickle is damaged or asks for anything else.
    """
    try:
        with open(path, "rb") as file:
            return _Restricted(file, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise UserError(f"{path} is not a pickle of arrays and containers ({reason}), so it was not loaded") from None
