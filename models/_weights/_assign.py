"""Fitting the tensors of a file to the variables of a network, strictly."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jgraph._errors import ModuleWeightsError


class TensorName(NamedTuple):
    """A tensor of a weight file.

    Args:
        name: its name in the file.
        transpose: the order of its axes that makes its layout ours; None keeps it.
    """

    name: str
    transpose: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Which tensor of a file belongs to which variable of a network.

    Args:
        backbone: tensors by the path of their variable, such as `blocks/0/project/conv/kernel`.
        classifier: likewise, for the classification head.
        ignored_suffixes: endings of the names in the file that stand for nothing in the network.
    """

    backbone: Mapping[str, TensorName]
    classifier: Mapping[str, TensorName]
    ignored_suffixes: tuple[str, ...]


def assign_weights(
    model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    names: WeightNames,
    *,
    with_classifier: bool,
    source: str,
) -> None:
    """Set the variables of a network, in place, from the tensors of a file.

    Args:
        model: the network; its variables may be abstract (`nnx.eval_shape`).
        tensors: what the file holds.
        names: which tensor belongs where.
        with_classifier: whether the classification head is set too; otherwise it is left alone.
        source: the file, for the error message.

    Raises:
        ModuleWeightsError: a tensor is missing, left over, of another shape or not of floats;
            every such tensor is named.
    """
    table = dict(names.backbone) | (dict(names.classifier) if with_classifier else {})
    state = _variables(model)
    unused = set(tensors) - {row.name for row in table.values()}
    if not with_classifier:
        unused -= {row.name for row in names.classifier.values()}
    faults = _missing(table, tensors, unused)
    faults += [
        f"left over: {name}" for name in sorted(unused) if not name.endswith(names.ignored_suffixes)
    ]
    values = []
    for key, row in table.items():
        if row.name not in tensors:
            continue
        path, variable = state[key]
        value = _our_layout(tensors[row.name], row)
        faults += _misfit(row.name, value, variable.get_value())
        values.append((path, variable, value))
    if faults:
        lines = "\n  ".join(faults)
        raise ModuleWeightsError(
            f"the weights must be those of this {type(model).__name__}, but {source} does not "
            f"fit:\n  {lines}"
        )
    new = [(path, variable.replace(_to_device(x, variable))) for path, variable, x in values]
    nnx.update(model, nnx.from_flat_state(new))


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
    names = WeightNames(own, {}, ignored_suffixes=())
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


def _missing(
    table: Mapping[str, TensorName], tensors: Mapping[str, np.ndarray], unused: Iterable[str]
) -> list[str]:
    faults = []
    for row in table.values():
        if row.name not in tensors:
            nearest = difflib.get_close_matches(row.name, sorted(unused), n=1)
            hint = f" (nearest in the file: {nearest[0]})" if nearest else ""
            faults.append(f"missing: {row.name}{hint}")
    return faults


def _our_layout(value: np.ndarray, row: TensorName) -> np.ndarray:
    # A tensor with another number of axes is left as it is, and named as a misfit.
    if row.transpose is None or value.ndim != len(row.transpose):
        return value
    return value.transpose(row.transpose)


def _misfit(name: str, value: np.ndarray, wanted: jax.Array | jax.ShapeDtypeStruct) -> list[str]:
    if value.shape != wanted.shape:
        return [f"of another shape: {name}, in our layout {value.shape} instead of {wanted.shape}"]
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return [f"of another type: {name}, {value.dtype} instead of {wanted.dtype}"]
    return []


def _to_device(value: np.ndarray, variable: nnx.Variable) -> jax.Array:
    return jnp.asarray(value, variable.get_value().dtype)
