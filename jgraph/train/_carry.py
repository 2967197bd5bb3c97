"""What one training step hands to the next, as flat arrays by path."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jgraph.train._objective import Measured
from jgraph.train._state import Leaves

WINDOW = "window"
"""What the paths of the sums since the last log begin with."""


class Health(NamedTuple):
    """The number of the step, and the first step, 0 for none, that wasn't finite, with its loss."""

    step: Int[Array, ""]
    bad_step: Int[Array, ""]
    bad_loss: Float[Array, ""]


class State(NamedTuple):
    """What training changes, as leaves."""

    params: Leaves
    """Of the trainable Params."""
    rest: Leaves
    """Of the model's other Variables."""
    optimizer: Leaves
    average: Leaves = ()
    """The moving average of the params, where one is kept."""


class Carry(NamedTuple):
    """What one step hands to the next."""

    state: State
    window: Measured
    """The sums since the last log."""
    health: Health


class Flat:
    """A carry as a dict of arrays by path, which is what a step overwrites.

    A dict, since jax.jit takes and returns one without running Python, in which Ctrl-C would lose
    the new carry after the old one was given away. Random keys are plain numbers in it for the
    same reason: handing out a key runs Python.

    Args:
        names: the paths of the state's leaves.
    """

    def __init__(self, names: State) -> None:
        self._state_names = jax.tree.leaves(names)
        self.model_names = (*names.params, *names.rest)
        self._names: tuple[str, ...] = ()
        self._structure: Any = None
        self._keys: tuple[Any, ...] = ()

    def pack(self, carry: Carry) -> dict[str, Any]:
        """Return the arrays by path."""
        sums = [
            f"{part}{jax.tree_util.keystr(path)}"
            for part, tree in ((WINDOW, carry.window), ("health", carry.health))
            for path, _ in jax.tree.leaves_with_path(tree)
        ]
        leaves, self._structure = jax.tree.flatten(carry)
        self._names = (*self._state_names, *sums)
        self._keys = tuple(map(_key_impl, leaves))
        return dict(zip(self._names, map(as_numbers, leaves), strict=True))

    def unpack(self, arrays: dict[str, Any]) -> Carry:
        """Undo `pack`."""
        leaves = [
            arrays[name] if impl is None else jax.random.wrap_key_data(arrays[name], impl=impl)
            for name, impl in zip(self._names, self._keys, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)


def as_numbers(x: Any) -> Any:
    """Return random keys as plain numbers, another array as it is."""
    return x if _key_impl(x) is None else jax.random.key_data(x)


def as_leaf(numbers: Any, old: Any) -> Any:
    """Undo `as_numbers` for what is to take an old leaf's place."""
    impl = _key_impl(old)
    return numbers if impl is None else jax.random.wrap_key_data(numbers, impl=impl)


def _key_impl(x: Any) -> Any:
    """Return the implementation of a random key, None for another array."""
    return jax.random.key_impl(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else None
