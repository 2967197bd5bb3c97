"""NNX models as flat tuples of arrays, and back: only this file splits models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jgraph._errors import InputError
from jgraph.train._modes import compute_in, dotted, is_within, rest_modules

Leaves: TypeAlias = tuple[Any, ...]
Path: TypeAlias = tuple[Any, ...]
# nnx.State, which beartype can't read without a warning: it is generic in typing.Hashable.
State: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class Group:
    """The Variables of one part of a model: their paths, and how leaves become Variables again."""

    paths: tuple[Path, ...]
    structure: Any
    names: tuple[str, ...]
    """Of the leaves, `layers.0.kernel`."""

    @classmethod
    def of(cls, state: State) -> tuple[Group, Leaves]:
        """Take a State apart into its group and its leaves."""
        flat = dict(nnx.to_flat_state(state))
        leaves, structure = jax.tree.flatten(list(flat.values()))
        values = {dotted(path): variable.get_raw_value() for path, variable in flat.items()}
        names = [
            name + jax.tree_util.keystr(keys)
            for name, value in values.items()
            for keys, _ in jax.tree.leaves_with_path(value)
        ]
        return cls(tuple(flat), structure, tuple(names)), tuple(leaves)

    def state(self, leaves: Sequence[Any]) -> State:
        """Make fresh Variables, which belong to the trace they are made in."""
        variables = jax.tree.unflatten(self.structure, leaves)
        return nnx.from_flat_state(zip(self.paths, variables, strict=True))

    def nest(self, leaves: Sequence[Any]) -> dict[Any, Any]:
        """Return nested dicts keyed by attribute and index, the form the optimizer sees."""
        tree: dict[Any, Any] = {}
        for path, leaf in zip(self.paths, leaves, strict=True):
            node = tree
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = leaf
        return tree

    def unnest(self, tree: Any) -> Leaves:
        """Undo `nest`."""
        leaves = []
        for path in self.paths:
            node = tree
            for key in path:
                node = node[key]
            leaves.append(node)
        return tuple(leaves)


@dataclasses.dataclass(frozen=True)
class Binding:
    """How a model's leaves make the model: `params` get gradients, `rest` is everything else."""

    graphdef: Any
    eval_graphdef: Any
    params: Group
    rest: Group
    trainable: nnx.filterlib.Filter

    def merge(self, params: Leaves, rest: Leaves, *, train: bool) -> nnx.Module:
        """Build the model from leaves, in the mode it was passed in or in evaluation mode."""
        graphdef = self.graphdef if train else self.eval_graphdef
        return nnx.merge(graphdef, self.params.state(params), self.rest.state(rest))

    def read_rest(self, model: nnx.Module, old: Leaves) -> Leaves:
        """Return what a forward pass left in the Variables that get no gradient.

        Variables that the pass added, such as sown intermediates, are dropped.
        """
        _, _, state = nnx.split(model, self.trainable, ...)
        flat = dict(nnx.to_flat_state(state))
        missing = [path for path in self.rest.paths if path not in flat]
        if missing:
            raise InputError(
                f"loss_fn must leave the model's Variables in place, it removed "
                f"{dotted(missing[0])}"
            )
        new = tuple(jax.tree.leaves([flat[path] for path in self.rest.paths]))
        if [jnp.shape(x) for x in new] != [jnp.shape(x) for x in old]:
            changed = [
                f"{dotted(path)} from {jnp.shape(a)} to {jnp.shape(b)}"
                for path, a, b in zip(self.rest.paths, old, new, strict=False)
                if jnp.shape(a) != jnp.shape(b)
            ]
            raise InputError(
                f"loss_fn must keep the shapes of the model's Variables, it changed {changed[0]}"
            )
        return new

    def state(self, params: Leaves, rest: Leaves) -> State:
        """Return the whole model's State."""
        return nnx.merge_state(self.params.state(params), self.rest.state(rest))

    def write_back(self, model: nnx.Module, params: Leaves, rest: Leaves) -> None:
        """Give the model these values."""
        nnx.update(model, self.params.state(params), self.rest.state(rest))


def bind(
    model: nnx.Module,
    trainable: nnx.filterlib.Filter = nnx.Param,
    *,
    freeze: str | Sequence[str] = (),
    compute_dtype: DTypeLike | None = None,
) -> tuple[Binding, Leaves, Leaves]:
    """Split a model once.

    Args:
        model: an NNX module.
        trainable: filter of the Params that get gradients.
        freeze: globs of dotted paths of modules and Params that rest, in evaluation mode.
        compute_dtype: what modules compute in that have no `dtype` of their own.

    Returns:
        The binding, the leaves of the trainable Params, the leaves of all other Variables.

    Raises:
        InputError: a glob matches nothing.
    """
    globs = (freeze,) if isinstance(freeze, str) else tuple(freeze)
    # Modes and types are flags on modules; on a twin they can't touch the caller's model.
    twin = nnx.merge(*nnx.split(model))
    rest_modules(twin, globs)
    if compute_dtype is not None:
        compute_in(twin, compute_dtype)
    chosen = nnx.All(nnx.Param, trainable, nnx.Not(lambda path, _: is_within(path, globs)))
    graphdef, params_state, rest_state = nnx.split(twin, chosen, ...)
    params, param_leaves = Group.of(params_state)
    rest, rest_leaves = Group.of(rest_state)
    twin.eval()
    binding = Binding(graphdef, nnx.graphdef(twin), params, rest, chosen)
    return binding, param_leaves, rest_leaves


def check_trainable(model: nnx.Module, binding: Binding, params: Leaves) -> None:
    """Raise where the filter selects nothing that an optimizer could step.

    Raises:
        InputError: no Param is selected, or one doesn't hold exactly one array.
    """
    if not binding.params.paths:
        names = [dotted(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
        raise InputError(
            "trainable must select at least one nnx.Param of the model, it selects none of "
            f"{', '.join(names[:8]) or 'the none there are'}{', …' if len(names) > 8 else ''}"
        )
    if len(params) != len(binding.params.paths):
        raise InputError(
            f"each trainable nnx.Param must hold one array, the {len(binding.params.paths)} "
            f"selected hold {len(params)}; keep the others out with trainable=…"
        )
