"""How the modules of a model run: at rest, or in a narrower type."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jgraph._errors import InputError
from jgraph._suggest import did_you_mean


def dotted(path: Sequence[Any]) -> str:
    """Return a path as people write it: layers.0.kernel."""
    return ".".join(map(str, path))


def is_within(path: Sequence[Any], globs: Sequence[str]) -> bool:
    """Return whether a path, or a part of the model that holds it, matches a glob.

    Example:
        >>> is_within(("backbone", "blocks", 3, "kernel"), ["backbone.blocks.*"])
        True
    """
    starts = [dotted(path[: i + 1]) for i in range(len(path))]
    return any(fnmatchcase(start, glob) for glob in globs for start in starts)


def rest_modules(model: nnx.Module, globs: Sequence[str]) -> None:
    """Put the modules that globs match in evaluation mode.

    Raises:
        InputError: a glob matches no module and no Variable.
    """
    parts = (nnx.Pytree, nnx.Variable)
    paths = [p for p, x in nnx.iter_graph(model, graph=True) if p and isinstance(x, parts)]
    for glob in globs:
        if not any(is_within(path, [glob]) for path in paths):
            names = list(dict.fromkeys(map(dotted, paths)))
            raise InputError(
                f"freeze must match a part of the model, {glob!r} matches none of "
                f"{', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
                f"{did_you_mean(glob, names)}"
            )
    for path, module in nnx.iter_modules(model):
        if path and is_within(path, globs):
            module.eval()


def compute_in(model: nnx.Module, dtype: DTypeLike) -> None:
    """Let each module compute in a type that has not been given one of its own.

    Parameters and running statistics keep their type. Modules say so by `dtype=None`, as Flax's
    do where nothing was passed.
    """
    for _, module in nnx.iter_modules(model):
        if vars(module).get("dtype", dtype) is None:
            vars(module)["dtype"] = jnp.dtype(dtype)
