"""'Did you mean': one wording and one rule for every name a person can misspell."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return "; did you mean X?" for the candidate closest to `name`, or "" without one.

    Example:
        >>> did_you_mean("efficentnet", ["efficientnet", "resnet"])
        '; did you mean efficientnet?'
    """
    near = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def did_you_mean_path(path: Path) -> str:
    """Return the hint for a path that doesn't exist, by its first part that doesn't."""
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    siblings: list[str] = []
    if path.parent.is_dir():
        # A link to what is gone has a name, but nobody means it.
        siblings = sorted(child.name for child in path.parent.iterdir() if child.exists())
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
