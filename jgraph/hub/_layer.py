"""A signature inside a model: an NNX module whose Params are the weights that it uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jgraph._arrays import from_numpy
from jgraph._errors import InputError
from jgraph._replicas import replica_axis
from jgraph._suggest import did_you_mean
from jgraph.hub._weights import KINDS, Frozen, Part, grow, take

if TYPE_CHECKING:
    from jgraph.hub._module import Module


class Layer(Part):
    """One signature of a hub module; made by `Module.as_nnx`.

    Its attributes are its weights, below the names they had: `layer.blocks…`. `train()` and
    `eval()` choose the program; it starts in evaluation mode.
    """

    def __init__(
        self, module: Module, signature: str, keys: Sequence[str], below: str = ""
    ) -> None:
        self._module, self._signature = module, signature
        self._keys, self._below = tuple(keys), below
        self.deterministic = True

    def __call__(self, *inputs: Any) -> Any:
        """Return the signature's outputs."""
        runner = self._module.runner(self._signature, train=not self.deterministic)
        variables = self._take(runner.paths)
        weights = {key: variable.get_value() for key, variable in variables.items()}
        if self.deterministic or replica_axis() is None:
            outputs, after = runner(weights, *inputs)
        else:
            outputs, after = _over_whole_batch(runner, weights, inputs)
        for key, variable in variables.items():
            if after[key] is not weights[key] and not isinstance(variable, nnx.Param | Frozen):
                variable.set_value(after[key])
        return outputs

    @property
    def source(self) -> Module:
        """The module it was made of, with the weights that it had."""
        return self._module

    def part(self, key: str) -> nnx.Module | None:
        """Return what is below a key, None where this signature uses nothing of it."""
        node: Any = self
        for name in key.removeprefix(self._below).split("/"):
            node = vars(node).get(name)
            if not isinstance(node, nnx.Module):
                return None
        return node

    def module(self) -> Module:
        """Return the hub module with this layer's weights, those it doesn't use as they were."""
        found = self._take(key for key in self._keys if key in self._module.weights)
        return self._module.with_weights({k: np.asarray(v.get_value()) for k, v in found.items()})

    def _take(self, keys: Iterable[str]) -> dict[str, nnx.Variable[Any]]:
        names = {key: key.removeprefix(self._below) for key in keys}
        found = take(self, names.values())
        return {key: found[name] for key, name in names.items()}


LayerT = TypeVar("LayerT", bound=Layer)


def make_layer(
    module: Module,
    signature: str,
    trainable: bool | str | Sequence[str],
    rngs: nnx.Rngs,
    below: str,
    kind: type[LayerT],
) -> LayerT:
    """Make a layer; see `Module.as_nnx`."""
    runners = [module.runner(signature, train=mode) for mode in (False, True)]
    keys = tuple(dict.fromkeys(key for runner in runners for key in runner.paths))
    entries = module.manifest["variables"]
    is_param = {key: entries[key]["kind"] == "Param" for key in keys}
    globs = [trainable] if isinstance(trainable, str) else trainable
    if not isinstance(globs, bool):
        _check_globs(globs, [key for key in keys if is_param[key]])
    made = kind(module, signature, keys, below)
    variables: dict[str, nnx.Variable[Any]] = {}
    for key in keys:
        if key in module.weights:
            variable_type = KINDS[entries[key]["kind"]]
            if is_param[key] and not _is_trainable(key, globs):
                variable_type = Frozen
            variables[key] = variable_type(from_numpy(module.weights[key]))
        else:
            variables[key] = make_stream(entries[key], key, rngs)
    grow(made, {key.removeprefix(below): variable for key, variable in variables.items()})
    return made


def _is_trainable(key: str, globs: bool | Sequence[str]) -> bool:
    return globs if isinstance(globs, bool) else any(fnmatchcase(key, glob) for glob in globs)


def _check_globs(globs: Sequence[str], keys: Sequence[str]) -> None:
    for glob in globs:
        if not any(fnmatchcase(key, glob) for key in keys):
            raise InputError(
                f"trainable must match parameters of the signature, {glob!r} matches none of "
                f"{', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}{did_you_mean(glob, keys)}"
            )


def make_stream(entry: dict[str, Any], key: str, rngs: nnx.Rngs) -> nnx.Variable[Any]:
    """Make a random stream's key or counter anew."""
    shape = tuple(entry["shape"])
    if entry["kind"] == "RngCount":
        return nnx.RngCount(jnp.zeros(shape, jnp.uint32), tag=key)
    keys = jax.random.split(rngs(), shape) if shape else rngs()
    return nnx.RngKey(keys, tag=key)


def _over_whole_batch(runner: Any, weights: Any, inputs: Any) -> tuple[Any, Any]:
    """Run a replica's training program on the batch of all replicas, and return its own part.

    The program's statistics are then the whole batch's, as without replicas; each replica does
    the work of all, which DataParallel spares.
    """
    axis = replica_axis()
    rows = jnp.shape(inputs[0])[0]
    whole = [jax.lax.all_gather(x, axis, tiled=True) for x in inputs]
    outputs, after = runner(weights, *whole)
    start = jax.lax.axis_index(axis) * rows
    own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), outputs)
    return own, after
