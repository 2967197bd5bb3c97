"""JSON from elsewhere: bounded in depth and in number, with every key once."""

from __future__ import annotations

import json
from typing import Any

_MAX_CONTAINERS = 400_000  # what makes JSON take most memory for its length
_MAX_DEPTH = 120


def parse_json(text: bytes, what: str) -> Any:
    """Return the value of a JSON text that somebody else wrote.

    Args:
        text: UTF-8.
        what: its name, for the messages.

    Raises:
        ValueError: it is no JSON, has a key twice, has NaN or infinity, or is too deep or too
            many.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError(f"{what} has a key twice")
        return found

    def no_constant(name: str) -> Any:
        raise ValueError(f"{what} must be JSON, which has no {name}")

    containers = text.count(b"[") + text.count(b"{")
    if containers > _MAX_CONTAINERS:
        raise ValueError(
            f"{what} must have at most {_MAX_CONTAINERS} lists and objects, got {containers}"
        )
    try:
        data = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except RecursionError:
        raise _too_deep(what) from None
    level = [data]
    for _ in range(_MAX_DEPTH):
        parents = [x for x in level if isinstance(x, (dict, list))]
        level = [y for x in parents for y in (x.values() if isinstance(x, dict) else x)]
        if not level:
            return data
    raise _too_deep(what)


def _too_deep(what: str) -> ValueError:
    return ValueError(f"{what} must be nested at most {_MAX_DEPTH} deep")
