"""`jgraph.numpy`: jax.numpy, but lists of numbers are taken where jax.numpy wants arrays."""

from __future__ import annotations

import functools
import types
from typing import Any

import jax.numpy as jnp


class _Lenient(types.ModuleType):
    """A module of functions, in which a list is made an array where the function refuses it.

    Example:
        >>> x = [[2.0]]
        >>> print("hello, {}".format(numpy.matmul(x, x)))
        hello, [[4.]]
    """

    def __init__(self, name: str, module: types.ModuleType) -> None:
        super().__init__(name, f"{module.__name__}, but lists are taken for arrays everywhere.")
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, types.ModuleType):
            found = _Lenient(f"{self.__name__}.{name}", found)
        elif callable(found) and not isinstance(found, type) and not hasattr(found, "dtype"):
            found = _lenient(found)
        setattr(self, name, found)
        return found

    def __dir__(self) -> list[str]:
        return dir(self._module)


def _lenient(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            arrays = [_as_array(x) for x in args]
            named = {key: _as_array(x) for key, x in kwargs.items()}
            if not any(isinstance(x, list) for x in (*args, *kwargs.values())):
                raise
        return function(*arrays, **named)

    return call


def _as_array(x: Any) -> Any:
    return jnp.asarray(x) if isinstance(x, list) else x


numpy = _Lenient("jgraph.numpy", jnp)
