"""How a call of a graph becomes its program's inputs, and the outputs a result and a new state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from jgraph._errors import InputError
from jgraph._suggest import did_you_mean
from jgraph.graph._arguments import ARRAY, NESTED, Labels, Layout
from jgraph.graph._nnx import is_object
from jgraph.graph._program import Mark, Plan, Traced

if TYPE_CHECKING:
    from jgraph.graph._file import Stored


def leaves_of(owner: object, paths: Sequence[str], state: Mapping[str, Any]) -> list[Any]:
    """Return the values of a state in the order of the program's paths.

    Raises:
        InputError: it is no dict, or a path is missing or left over.
    """
    if not isinstance(state, Mapping) or isinstance(state, nnx.State):
        raise InputError(
            "graph.apply takes the state first, a dict of arrays by path such as graph.state; "
            f"got {type(state).__name__}"
        )
    missing = [p for p in paths if p not in state]
    extra = [p for p in state if p not in set(paths)]
    if missing or extra:
        hint = did_you_mean(extra[0], missing) if missing and extra else ""
        raise InputError(
            f"state must have the paths of {owner!r}: missing {_few(missing)}; left over "
            f"{_few(extra)}{hint}"
        )
    return [state[p] for p in paths]


def arrays_of(
    owner: object, layout: Layout, labels: Labels, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return a call's arguments in the order of the program's: its arrays, and open containers.

    Raises:
        InputError: there are more or fewer than it takes.
    """
    taken = (ARRAY, NESTED)
    first = len(layout.kinds) - len(layout.names)
    by_position = [k for k in layout.kinds[:first] if k in taken]
    by_name = [n for n, k in zip(layout.names, layout.kinds[first:], strict=True) if k in taken]
    if len(args) != len(by_position) or set(kwargs) != set(by_name):
        wanted = [label if isinstance(label, str) else "…" for label in labels.arrays]
        raise InputError(
            f"{owner!r} takes the arguments ({', '.join(wanted)}), {len(by_position)} of them "
            f"by position; got {len(args)} by position and {sorted(kwargs)} by name"
        )
    given = [*args, *(kwargs[n] for n in by_name)]
    kinds = [k for k in layout.kinds if k in taken]
    return [
        jax.tree.leaves(x, is_leaf=is_object) if k == NESTED else x
        for x, k in zip(given, kinds, strict=True)
    ]


def flat_inputs(
    owner: object,
    traced: Traced | Stored,
    names: Sequence[Any],
    leaves: Sequence[Any],
    arrays: Sequence[Any],
) -> list[Any]:
    """Return the program's inputs: the arrays of the state, then those of the arguments.

    Raises:
        InputError: one has another structure than when the graph was traced; it is named.
    """
    of_state, of_arguments = jax.tree.unflatten(traced.structure, traced.avals)
    values = zip(names, [*of_state, *of_arguments], [*leaves, *arrays], strict=True)
    for label, avals, x in values:
        wanted, came = jax.tree.structure(avals), jax.tree.structure(x)
        if wanted != came:
            name = label if isinstance(label, str) else ", ".join(label)
            raise InputError(
                f"{name} must have the structure {owner!r} was traced with, {wanted}; got {came}"
            )
    return jax.tree.leaves((leaves, arrays))


def outcome_of(
    plan: Plan, paths: Sequence[str], leaves: Sequence[Any], outputs: Sequence[Any]
) -> tuple[Any, dict[str, Any]]:
    """Return what the function returns, and the state after it by path."""
    result = jax.tree.unflatten(plan.result, outputs[: plan.num_results])
    values = jax.tree.unflatten(plan.values, outputs[plan.num_results :])
    if plan.structure is None:
        new = dict(zip(plan.changed, values, strict=True))
        return result, {p: new.get(i, leaves[i]) for i, p in enumerate(paths)}
    rest = iter(values)
    after = [next(rest) if s is None else leaves[s] for s in plan.sources]

    def fill(x: Any) -> Any:
        if not isinstance(x, Mark):
            return x
        arrays = {path: after[i] for path, i in plan.returned[x.number]}
        return arrays.get("", arrays)  # one Variable is its array

    result = jax.tree.map(fill, result, is_leaf=lambda x: isinstance(x, Mark))
    return result, {path: after[i] for path, i in plan.state}


def _few(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
