"""Graphs to files and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgraph._errors import GraphFormatError
from jgraph._version import __version__
from jgraph.graph._arguments import Labels
from jgraph.graph._file._archive import read_archive, write_archive
from jgraph.graph._file._check import read_document
from jgraph.graph._file._document import FORMAT, Document
from jgraph.graph._file._interface import read_interface, write_interface
from jgraph.graph._file._kinds import as_dtype
from jgraph.graph._file._stored import Stored
from jgraph.graph._file._table import OPSET
from jgraph.graph._file._write import write_program
from jgraph.graph._program import Interface, Traced

_STATE = "state/"


class Loaded(NamedTuple):
    """What a file holds, for `Graph`."""

    name: str
    program: Stored
    interface: Interface
    labels: Labels
    state: list[Any] | None


def stored(name: str, traced: Traced | Stored, interface: Interface, labels: Labels) -> Loaded:
    """Return a traced graph as if it had been saved and loaded.

    Raises:
        GraphFormatError: an operation that no file can hold.
    """
    document, tensors = _document(name, traced, interface, labels)
    return _loaded(document, tensors, None)


def write_graph(
    path: str | os.PathLike[str],
    name: str,
    traced: Traced | Stored,
    interface: Interface,
    labels: Labels,
    leaves: Sequence[Any] | None,
) -> None:
    """Write a graph file.

    Args:
        path: the file.
        name: of the graph.
        traced: the program.
        interface: its inputs.
        labels: the names of its arguments.
        leaves: the state to write along; None for none.

    Raises:
        GraphFormatError: an operation that no file can hold, or a program larger than `load` reads.
    """
    document, tensors = _document(name, traced, interface, labels)
    arrays = jax.tree.leaves(list(leaves)) if leaves is not None else []
    state = {f"{_STATE}{i}": _as_numbers(x) for i, x in enumerate(arrays)}
    write_archive(
        path,
        _json(document, has_state=leaves is not None),
        {**tensors, **state},
        lambda data: _loaded(read_document(data), tensors, None),
    )


def read_graph(path: str | os.PathLike[str]) -> Loaded:
    """Read a graph file.

    Raises:
        GraphFormatError: it is no graph file, or a damaged one; it says where.
    """
    data, tensors = read_archive(path)
    try:
        document = read_document(data)
        states = {k: v for k, v in tensors.items() if k.startswith(_STATE)}
        constants = {k: v for k, v in tensors.items() if k not in states}
        _check_tensors(document, constants)
        has_state = data.get("has_state")
        if not isinstance(has_state, bool) or (states and not has_state):
            raise GraphFormatError(
                f"has_state must be true or false as there is state, got {has_state!r:.40}"
            )
        return _loaded(document, constants, states if has_state else None)
    except GraphFormatError as error:
        raise GraphFormatError(f"{os.fspath(path)}: {error}") from None


def _check_tensors(document: Document, constants: Mapping[str, Any]) -> None:
    steps = (step for body in document.functions for step in body.steps)
    named = {step.params["tensor"] for step in steps if step.op == "constant"}
    wrong = sorted(named ^ set(constants))
    if wrong:
        problem = "lacks the" if wrong[0] in named else "has the unknown"
        raise GraphFormatError(f"the file {problem} tensor {wrong[0]!r:.60}")


def _document(
    name: str, traced: Traced | Stored, interface: Interface, labels: Labels
) -> tuple[Document, dict[str, np.ndarray]]:
    if isinstance(traced, Stored) and not traced.is_cast:
        return traced.document._replace(name=name), dict(traced.tensors)
    described = write_interface(interface, labels, traced.plan, traced.structure)
    return write_program(traced.jaxpr, name, described)


def _json(document: Document, *, has_state: bool) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("jax", "flax")}
    return {
        "format": FORMAT,
        "opset": OPSET,
        "made_with": {"jgraph": __version__, **versions},
        "has_state": has_state,
        **document._asdict(),
    }


def _loaded(
    document: Document, tensors: Mapping[str, Any], state: Mapping[str, Any] | None
) -> Loaded:
    main = document.functions[-1]
    interface, labels, plan, structure = read_interface(
        document.interface, main.inputs, len(main.outputs)
    )
    program = Stored(document, tensors, plan, structure)
    leaves = None if state is None else _leaves(document, structure, state)
    return Loaded(document.name, program, interface, labels, leaves)


def _leaves(document: Document, structure: Any, state: Mapping[str, Any]) -> list[Any]:
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))[0]
    count = len(jax.tree.leaves(numbered))
    if set(state) != {f"{_STATE}{i}" for i in range(count)}:
        raise GraphFormatError(f"the state must be {count} tensors, got {len(state)}")
    arrays = []
    for i, wanted in enumerate(document.inputs[:count]):
        found = state[f"{_STATE}{i}"]
        array = jnp.asarray(found)
        dtype = as_dtype(wanted.dtype)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            try:
                impl = jax.random.key_impl(jnp.empty((), dtype))
                array = jax.random.wrap_key_data(array, impl=impl)
            except (TypeError, ValueError) as error:
                raise GraphFormatError(f"tensor {_STATE}{i} must be keys: {error}") from error
        elif found.dtype != dtype:  # what JAX would round without a word
            array = found
        if (array.shape, array.dtype) != (wanted.shape, dtype):
            raise GraphFormatError(
                f"tensor {_STATE}{i} must be {wanted.dtype}{list(wanted.shape)}, got "
                f"{array.dtype}{list(array.shape)}"
            )
        arrays.append(array)
    return jax.tree.map(lambda number: arrays[number], numbered)


def _as_numbers(x: Any) -> np.ndarray:
    if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(x))
    return np.asarray(x)
