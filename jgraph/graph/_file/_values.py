"""Numbers in a graph file: JSON has neither infinity nor NaN."""

from __future__ import annotations

import math
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
    if isinstance(value, list) and len(value) == 2:
        for part in value:
            check_number(part, where)
        return
    is_number = (isinstance(value, (bool, int, float)) and abs(value) < 1e40) or value in _SPECIAL
    if isinstance(value, list) or not (is_number or isinstance(value, float)):
        raise GraphFormatError(f"{where} must be a number, got {value!r:.40}")


def read_number(value: Any) -> Any:
    """Return the number that JSON stands for."""
    if isinstance(value, list):
        return complex(*map(read_number, value))
    return _SPECIAL[value] if isinstance(value, str) else value


NUMBER = Kind(
    lambda value, _: write_number(value), check_number, lambda value, _: read_number(value)
)
