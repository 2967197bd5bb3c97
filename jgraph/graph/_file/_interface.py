"""What a graph's inputs and outputs are, in its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jgraph._errors import GraphFormatError
from jgraph.graph._arguments import ARRAY, NESTED, Labels, Layout
from jgraph.graph._file._trees import read_tree, write_tree
from jgraph.graph._program import Interface, Plan

_MOST = 1_000_000


def write_interface(
    interface: Interface, labels: Labels, plan: Plan, structure: Any
) -> dict[str, Any]:
    """Return a graph's interface as JSON.

    Static arguments and objects are gone by now: their part in the program is fixed.
    """
    leaves, arrays = jax.tree.unflatten(structure, [0] * structure.num_leaves)
    layout = interface.layout
    first_name = len(layout.kinds) - len(layout.names)
    arguments = []
    pools, nests = iter(arrays), iter(layout.nests)
    names = iter(labels.arrays)
    for position, kind in enumerate(layout.kinds):
        if kind not in (ARRAY, NESTED):
            continue
        tree, label = next(pools), next(names)
        if kind == NESTED:
            of_container, flags = next(nests)
            rest = iter(tree)
            tree = jax.tree.unflatten(of_container, [None if f else next(rest) for f in flags])
        keyword = position >= first_name
        name = layout.names[position - first_name] if keyword else label
        arguments.append(
            [name if isinstance(name, str) else f"argument {position}", keyword, write_tree(tree)]
        )
    changes = None
    if plan.structure is not None:
        changes = {
            "sources": list(plan.sources),
            "state": [list(x) for x in plan.state],
            "returned": [[list(x) for x in named] for named in plan.returned],
        }
    return {
        "state": [
            [path, bool(param), write_tree(leaf)]
            for path, param, leaf in zip(interface.paths, interface.is_param, leaves, strict=True)
        ],
        "arguments": arguments,
        "result": write_tree(jax.tree.unflatten(plan.result, [0] * plan.num_results)),
        "values": write_tree(jax.tree.unflatten(plan.values, [0] * plan.values.num_leaves)),
        "changed": list(plan.changed),
        "changes": changes,
    }


def read_interface(
    data: Mapping[str, Any], num_inputs: int, num_outputs: int
) -> tuple[Interface, Labels, Plan, Any]:
    """Return what `Graph` needs to know of a file's inputs and outputs.

    Raises:
        GraphFormatError: it doesn't fit the program.
    """
    state = [_entry(x, f"interface.state[{i}]") for i, x in enumerate(_list(data, "state"))]
    arguments = [
        _entry(x, f"interface.arguments[{i}]") for i, x in enumerate(_list(data, "arguments"))
    ]
    names = [name for name, _, _ in arguments]
    paths = [path for path, _, _ in state]
    for what in (paths, names):
        if len(set(what)) != len(what):
            raise GraphFormatError("the names of inputs must differ, and two are the same")
    keywords = [is_keyword for _, is_keyword, _ in arguments]
    if keywords != sorted(keywords):
        raise GraphFormatError("keyword arguments must come last")
    structure = jax.tree.structure(([x for _, _, x in state], [x for _, _, x in arguments]))
    if structure.num_leaves != num_inputs:
        raise GraphFormatError(
            f"interface must have as many inputs as the program, {num_inputs}, got "
            f"{structure.num_leaves}"
        )
    layout = Layout(
        (ARRAY,) * len(arguments),
        tuple(name for name, is_keyword, _ in arguments if is_keyword),
        (),
        (),
    )
    labels = Labels([], list(names), [])
    interface = Interface(
        layout=layout,
        structure=None,
        labels=(),
        num_arguments=0,
        roots=(0,) * len(state),
        paths=tuple(paths),
        in_variable=(True,) * len(state),
        is_param=tuple(is_param for _, is_param, _ in state),
        inside=False,
        arguments=labels,
    )
    return interface, labels, _plan(data, len(state), num_outputs), structure


def _plan(data: Mapping[str, Any], num_state: int, num_outputs: int) -> Plan:
    result = jax.tree.structure(read_tree(data.get("result"), "interface.result"))
    values = jax.tree.structure(read_tree(data.get("values"), "interface.values"))
    if result.num_leaves + values.num_leaves != num_outputs:
        raise GraphFormatError(
            f"interface must have as many outputs as the program, {num_outputs}, got "
            f"{result.num_leaves + values.num_leaves}"
        )
    if values.node_data() is None or values.node_data()[0] is not list:
        raise GraphFormatError("interface.values must be a list")
    new = len(values.children())
    changed = tuple(_numbers(_list(data, "changed"), num_state, "interface.changed"))
    changes = data.get("changes")
    marks = _marks(data.get("result"))
    if changes is None:
        if new != len(changed):
            raise GraphFormatError("interface.changed must name the state of each new value")
        _numbers(marks, 0, "the objects in interface.result")
        return Plan(result, result.num_leaves, values, changed)
    if not isinstance(changes, Mapping):
        raise GraphFormatError("interface.changes must be an object or null")
    sources = _list(changes, "sources")
    known = [x for x in sources if x is not None]
    _numbers(known, num_state, "interface.changes.sources")
    if len(sources) - len(known) != new:
        raise GraphFormatError("interface.changes.sources must have a null for each new value")
    _numbers(marks, len(_list(changes, "returned")), "the objects in interface.result")
    return Plan(
        result,
        result.num_leaves,
        values,
        (),
        True,
        tuple(sources),
        _named(changes.get("state"), len(sources)),
        tuple(_named(x, len(sources)) for x in _list(changes, "returned")),
    )


def _marks(tree: Any) -> list[int]:
    """Return the numbers of the objects in a structure that has been read."""
    if isinstance(tree, list):
        return [number for x in tree for number in _marks(x)]
    if not isinstance(tree, dict):
        return []
    return [tree["mark"]] if "mark" in tree else _marks(list(tree.values()))


def _named(data: Any, most: int) -> tuple[tuple[str, int], ...]:
    if not isinstance(data, list) or not all(
        isinstance(x, list) and len(x) == 2 and isinstance(x[0], str) for x in data
    ):
        raise GraphFormatError("interface.changes must name paths and numbers")
    _numbers([x[1] for x in data], most, "interface.changes")
    return tuple((path, number) for path, number in data)


def _numbers(data: Sequence[Any], most: int, where: str) -> Sequence[int]:
    for x in data:
        if isinstance(x, bool) or not isinstance(x, int) or not 0 <= x < most:
            raise GraphFormatError(f"{where} must be numbers below {most}, got {x!r:.40}")
    return data


def _entry(data: Any, where: str) -> tuple[str, bool, Any]:
    if not isinstance(data, list) or len(data) != 3 or not isinstance(data[0], str):
        raise GraphFormatError(f"{where} must be a name, a flag and a structure, got {data!r:.40}")
    if not isinstance(data[1], bool) or len(data[0]) > 4096:
        raise GraphFormatError(f"{where} must be a name, a flag and a structure, got {data!r:.40}")
    return data[0], data[1], read_tree(data[2], where)


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    found = data.get(key)
    if not isinstance(found, list) or len(found) > _MOST:
        raise GraphFormatError(f"interface.{key} must be a list, got {type(found).__name__}")
    return found
