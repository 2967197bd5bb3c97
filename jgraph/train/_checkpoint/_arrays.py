"""The arrays of NNX objects and pytrees by path, and back; random keys as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jgraph._arrays import own
from jgraph._errors import InputError
from jgraph.distribute import is_local
from jgraph.graph import named_variables
from jgraph.train._step import Step


def arrays_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays of several NNX objects and pytrees by path, shared ones once.

    Raises:
        InputError: two have one path, or a leaf is no array and no number.
    """
    found: dict[str, Any] = {}
    for name, leaf in _leaves(state):
        if name in found:
            raise InputError(f"each array of a checkpoint must have a path of its own: {name!r}")
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise InputError(
                f"a checkpoint holds arrays and numbers, {name!r} is a {type(leaf).__name__}; "
                "pass what is JSON as info={…}"
            )
        array = jnp.asarray(leaf)
        found[name] = jax.random.key_data(array) if is_key(array) else array
    return found


def check_shared(arrays: Mapping[str, jax.Array]) -> None:
    """Refuse arrays of this process alone, where several write one checkpoint.

    Raises:
        InputError: one is; it says which, and how to place it.
    """
    alone = [name for name, array in arrays.items() if is_local(array)]
    if alone and jax.process_count() > 1:
        raise InputError(
            f"{jax.process_count()} processes save arrays on the devices of all, {alone[0]!r} is "
            "on those of this one; train with strategy=jg.distribute.auto(), or place it by the "
            "strategy's put"
        )


def set_arrays(state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Give NNX objects these arrays, in place, and return the state; pytrees are new ones."""
    for name, step in _steps(state).items():
        paths = step.arrays()
        step.restore({path: arrays[f"{name}.{path}"] for path in paths})

    def new(name: str, old: Any) -> Any:
        if not isinstance(old, (jax.Array, np.ndarray)):
            return type(old)(arrays[name].item())
        return like(arrays[name], old)

    def below(root: str, tree: Any) -> Any:
        return jax.tree.map_with_path(lambda keys, x: new(root + _keystr(keys), x), tree)

    for name, variable in named_variables(_objects(state)):
        variable.set_raw_value(below(name, variable.get_raw_value()))
    return {k: v if _is_kept(v) else below(k, v) for k, v in state.items()}


def like(value: np.ndarray, old: Any) -> jax.Array:
    """Return an array where an old one is, and random keys where those are."""
    raw = jax.random.key_data(old) if is_key(old) else jnp.asarray(old)
    placed = jax.make_array_from_callback(value.shape, raw.sharding, lambda index: value[index])
    new = own(placed)  # it may lie in numpy's memory, which a step would overwrite
    return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if is_key(old) else new


def is_key(x: Any) -> bool:
    """Return whether an array holds random keys."""
    return jnp.issubdtype(getattr(x, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def _objects(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if isinstance(v, (nnx.Pytree, nnx.Variable))}


def _steps(state: Mapping[str, Any]) -> dict[str, Step]:
    return {name: value for name, value in state.items() if isinstance(value, Step)}


def _is_kept(value: Any) -> bool:
    """Return whether a value is restored in place."""
    return isinstance(value, (nnx.Pytree, nnx.Variable, Step))


def _leaves(state: Mapping[str, Any]) -> list[tuple[str, Any]]:
    trees = {name: x.get_raw_value() for name, x in named_variables(_objects(state))}
    trees |= {name: value for name, value in state.items() if not _is_kept(value)}
    for name, step in _steps(state).items():
        trees |= {f"{name}.{path}": array for path, array in step.arrays().items()}
    return [
        (name + _keystr(keys), leaf)
        for name, tree in trees.items()
        for keys, leaf in jax.tree.leaves_with_path(tree)
    ]


def _keystr(keys: Any) -> str:
    return jax.tree_util.keystr(tuple(keys))
