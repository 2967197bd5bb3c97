"""Fitting the tensors of a file to the variables of a network, strictly."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jgraph._arrays import from_numpy
from jgraph._errors import ModuleWeightsError
from jgraph.models._weights._tables import TensorName, WeightNames


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """What became of a weight file.

    Args:
        layout: the way in which the file is published, such as "torchvision"; "" for our own.
        loaded: paths of the variables that were set.
        kept: paths of the variables that the file did not set, and what was the matter.
        left_out: names of the file's tensors that were not used, and what was the matter.
    """

    layout: str
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} variables loaded"]
        lines += [f"kept: {line}" for line in self.kept]
        lines += [f"left out: {line}" for line in self.left_out]
        return "\n  ".join(lines)


def assign_weights(
    model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    names: WeightNames,
    *,
    with_classifier: bool,
    source: str,
    partial: bool = False,
) -> LoadedWeights:
    """Set the variables of a network, in place, from the tensors of a file.

    Args:
        model: the network; its variables may be abstract (`nnx.eval_shape`).
        tensors: what the file holds.
        names: which tensor belongs where.
        with_classifier: whether the classification heads are set too; otherwise they are left
            alone.
        source: the file, for the error message.
        partial: whether what doesn't fit is left out instead of refused.

    Returns:
        What was set, and what was not.

    Raises:
        ModuleWeightsError: a tensor is missing, left over, of another shape or not of floats, and
            `partial` is false; every such tensor is named.
    """
    state = _variables(model)
    table = _wanted(names, state, with_classifier)
    deliberate = _set_aside(names, table, tensors)
    unused = [
        name
        for name in sorted(set(tensors) - {row.name for row in table.values()} - deliberate)
        if not name.endswith(names.ignored_suffixes)
    ]
    missing = [path for path, row in table.items() if row.name not in tensors]
    values = {
        path: _our_layout(tensors[row.name], row)
        for path, row in table.items()
        if row.name in tensors
    }
    misfits = {
        path: fault
        for path, value in values.items()
        if (fault := _misfit(table[path].name, value, state[path][1].get_value()))
    }
    faults = [f"missing: {_with_nearest(table[path].name, unused)}" for path in missing]
    faults += [f"left over: {name}" for name in unused]
    faults += misfits.values()
    if faults and not partial:
        lines = "\n  ".join(faults)
        raise ModuleWeightsError(
            f"the weights must be those of this {type(model).__name__}, but {source} does not "
            f"fit:\n  {lines}"
        )
    new = [
        (path, variable.replace(_to_device(values[key], variable)))
        for key, (path, variable) in state.items()
        if key in values and key not in misfits
    ]
    nnx.update(model, nnx.from_flat_state(new))
    return LoadedWeights(
        layout="",
        loaded=tuple(key for key in state if key in values and key not in misfits),
        kept=tuple(key for key in state if key not in values or key in misfits),
        left_out=(*sorted(deliberate), *unused, *misfits.values()),
    )


def set_weights(model: nnx.Module, weights: Mapping[str, np.ndarray], *, source: str) -> None:
    """Set every variable of a module, in place, from arrays named by their paths.

    Args:
        model: any module; the state of its random streams is left alone.
        weights: what `weights_of` returned of a module of the same structure.
        source: where they come from, for the error message.

    Raises:
        ModuleWeightsError: a weight is missing, left over, of another shape or not of floats;
            every such weight is named.
    """
    own = {name: TensorName(name, None) for name in _variables(model)}
    names = WeightNames(own, {})
    assign_weights(model, weights, names, with_classifier=False, source=source)


def weights_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return a module's arrays by their paths, such as "backbone/stem/conv/kernel".

    Args:
        model: any module; the state of its random streams is left out.

    Returns:
        `{path: array}` in the order of the module.

    Example:
        >>> {k: v.shape for k, v in weights_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0))).items()}
        {'bias': (3,), 'kernel': (2, 3)}
    """
    return {name: np.asarray(leaf.get_value()) for name, (_, leaf) in _variables(model).items()}


def _variables(model: nnx.Module) -> dict[str, tuple[tuple[Any, ...], nnx.Variable]]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    return {"/".join(map(str, path)): (path, variable) for path, variable in flat}


def _wanted(
    names: WeightNames, state: Mapping[str, Any], with_classifier: bool
) -> dict[str, TensorName]:
    if not with_classifier:
        return dict(names.backbone)
    auxiliary = {path: row for path, row in names.auxiliary.items() if path in state}
    return dict(names.backbone) | dict(names.classifier) | auxiliary


def _set_aside(
    names: WeightNames, table: Mapping[str, TensorName], tensors: Mapping[str, np.ndarray]
) -> set[str]:
    """Return the file's tensors of heads that are not wanted."""
    heads = dict(names.classifier) | dict(names.auxiliary)
    return {row.name for path, row in heads.items() if path not in table} & set(tensors)


def _with_nearest(name: str, unused: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, unused, n=1)
    return f"{name} (nearest in the file: {nearest[0]})" if nearest else name


def _our_layout(value: np.ndarray, row: TensorName) -> np.ndarray:
    # A tensor with another number of axes is left as it is, and named as a misfit.
    if row.transpose is not None and value.ndim == len(row.transpose):
        value = value.transpose(row.transpose)
    if row.reverse is not None and value.ndim > row.reverse:
        value = np.flip(value, row.reverse)
    return value


def _misfit(name: str, value: np.ndarray, wanted: jax.Array | jax.ShapeDtypeStruct) -> str:
    if value.shape != wanted.shape:
        return f"of another shape: {name}, in our layout {value.shape} instead of {wanted.shape}"
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return f"of another type: {name}, {value.dtype} instead of {wanted.dtype}"
    return ""


def _to_device(value: np.ndarray, variable: nnx.Variable) -> jax.Array:
    return from_numpy(value, variable.get_value().dtype)
