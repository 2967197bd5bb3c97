"""What jgraph traces is its own function: here it passes, in JAX's errors, for the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any


class _Path(str):
    """A path such as `model.layers[0].kernel` as the name of a parameter."""

    __slots__ = ()

    def isidentifier(self) -> bool:
        return True


def stand_for(stand_in: Callable[..., Any], fn: Callable[..., Any], paths: Sequence[str]) -> None:
    """Make JAX name the user's function, and its arguments, where it traces a stand-in.

    JAX's errors (a tracer that Python code branches on, or that leaks) tell the place of the
    function that is traced, which they find behind `__wrapped__`, and the parameters of its
    signature.

    Args:
        stand_in: takes flat arrays.
        fn: the user's function.
        paths: what each of the arrays is called.
    """
    if len(set(paths)) < len(paths):  # keys of the user's own pytrees needn't differ
        paths = [f"{path} (input {i})" for i, path in enumerate(paths)]
    kind = inspect.Parameter.POSITIONAL_ONLY
    parameters = [inspect.Parameter(_Path(path), kind) for path in paths]
    vars(stand_in).update(__wrapped__=fn, __signature__=inspect.Signature(parameters))
