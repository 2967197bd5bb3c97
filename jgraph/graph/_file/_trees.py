"""Pytree structures in a graph file: dicts, lists, tuples and None."""

from __future__ import annotations

from typing import Any

import jax

from jgraph._errors import GraphFormatError
from jgraph.graph._program import Mark

_LEAF = 0
_MAX_DEPTH = 50
_MAX_CHILDREN = 100_000


def write_tree(tree: Any) -> Any:
    """Return a pytree's structure as JSON; what is no plain container becomes a tuple.

    Example:
        >>> write_tree({"x": (1, None), "y": [2]})
        {'dict': [['x', {'tuple': [0, None]}], ['y', {'list': [0]}]]}
    """
    if tree is None:
        return None
    if isinstance(tree, Mark):
        return {"mark": tree.number}
    if type(tree) is dict and all(isinstance(key, (str, int)) for key in tree):
        keys = sorted(tree)
        return {"dict": [[key, write_tree(tree[key])] for key in keys]}
    if type(tree) is list:
        return {"list": [write_tree(x) for x in tree]}
    if type(tree) is tuple:
        return {"tuple": [write_tree(x) for x in tree]}
    children = jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)
    if len(children) == 1 and children[0] is tree:
        return _LEAF
    return {"tuple": [write_tree(x) for x in children]}


def read_tree(data: Any, where: str, depth: int = 0) -> Any:
    """Return a pytree of that structure, whose leaves are zeros.

    Raises:
        GraphFormatError: it is no structure.
    """
    if data is None:
        return None
    if type(data) is int and data == _LEAF:
        return 0
    if not isinstance(data, dict) or len(data) != 1 or depth > _MAX_DEPTH:
        raise GraphFormatError(f"{where} must be the structure of a pytree, got {data!r:.40}")
    ((kind, content),) = data.items()
    if kind == "mark" and type(content) is int and 0 <= content < _MAX_CHILDREN:
        return Mark(content)
    if not isinstance(content, list) or len(content) > _MAX_CHILDREN:
        raise GraphFormatError(f"{where} must be the structure of a pytree, got {content!r:.40}")
    if kind in ("list", "tuple"):
        children = [read_tree(x, where, depth + 1) for x in content]
        return children if kind == "list" else tuple(children)
    if kind == "dict" and all(isinstance(x, list) and len(x) == 2 for x in content):
        found = {_key(key, where): read_tree(x, where, depth + 1) for key, x in content}
        if len(found) == len(content) and len({type(key) for key in found}) <= 1:
            return found
    raise GraphFormatError(f"{where} must be the structure of a pytree, got {kind!r:.40}")


def _key(data: Any, where: str) -> str | int:
    if isinstance(data, bool) or not isinstance(data, (str, int)):
        raise GraphFormatError(
            f"{where} must have texts or whole numbers as keys, got {data!r:.40}"
        )
    return data
