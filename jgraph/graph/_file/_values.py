"""Numbers in a graph file: JSON has neither infinity nor NaN."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from jgraph._errors import GraphFormatError
from jgraph.graph._file._kinds import Kind

_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def write_number(value: Any) -> Any:
    """Return a number as JSON: complex ones as pairs, infinities and NaN as words."""
    number = np.asarray(value).astype(object).item() if hasattr(value, "dtype") else value
    if isinstance(number, complex):
        return [write_number(number.real), write_number(number.imag)]
    if isinstance(number, (bool, int)):
        return number
    number = float(number)
    return number if math.isfinite(number) else str(number)


def check_number(value: Any, where: str) -> None:
    """Raise where JSON is no number.

    Raises:
        GraphFormatError: it says where.
    """
    parts = value if isinstance(value, list) and len(value) == 2 else [value]
    for part in parts:
        is_number = isinstance(part, float) or (isinstance(part, int) and abs(part) < 1e40)
        if not is_number and not (isinstance(part, str) and part in _SPECIAL):
            raise GraphFormatError(f"{where} must be a number, got {value!r:.40}")


def check_scalar(value: Any, dtype: str, where: str) -> None:
    """Raise where JSON is no number of this type.

    Raises:
        GraphFormatError: it says where.
    """
    check_number(value, where)
    bits = re.fullmatch("(u?)int([0-9]+)", dtype)
    if bits is not None:
        size = 2 ** int(bits[2])
        low = 0 if bits[1] else -size // 2
        fits = type(value) is int and low <= value < low + size
    elif dtype == "bool":
        fits = isinstance(value, bool)
    else:
        is_complex = dtype.startswith("complex")
        fits = not dtype.startswith("key") and is_complex == isinstance(value, list)
        fits &= not isinstance(value, bool)
    if not fits:
        raise GraphFormatError(f"{where} must be a number of the type {dtype}, got {value!r:.40}")


def read_number(value: Any) -> Any:
    """Return the number that JSON stands for."""
    if isinstance(value, list):
        return complex(*map(read_number, value))
    return _SPECIAL[value] if isinstance(value, str) else value


NUMBER = Kind(
    lambda value, _: write_number(value), check_number, lambda value, _: read_number(value)
)
