"""Paths as people write them: `model.blocks[3].norm.scale`, which can be pasted at a breakpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax


def attribute_path(keys: Iterable[Any]) -> str:
    """Return a path of attribute names and indices, `blocks[3].norm`.

    Example:
        >>> attribute_path(["model", "blocks", 3, "heads", "a-b"])
        "model.blocks[3].heads['a-b']"
    """
    return "".join(map(_key, keys)).removeprefix(".")


def join_path(root: str, keys: Iterable[Any]) -> str:
    """Return the path below a root: `join_path("model", ["bias"])` is `model.bias`."""
    text = attribute_path(keys)
    return f"{root}.{text}" if root and text and not text.startswith("[") else root + text


def function_name(fn: Callable[..., Any]) -> str:
    """Return a function's name with its class, `Net.loss`, without the functions around it."""
    return getattr(fn, "__qualname__", type(fn).__name__).rpartition("<locals>.")[2]


def tree_path(keys: Iterable[Any]) -> str:
    """Return what follows an argument's name on the way to a leaf: `['picture'][0]`."""
    return jax.tree_util.keystr(tuple(keys))


def _key(key: Any) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    return f"[{key!r}]"
