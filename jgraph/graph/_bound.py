"""Objects together with the program for their structure: what a call reads, runs and writes."""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from jgraph._errors import InputError
from jgraph.graph._binding import Binding
from jgraph.graph._nnx import read_variable, restructure, write_variable
from jgraph.graph._program import Mark, Plan, Program, Update


class Bound:
    """A binding and its program.

    Args:
        binding: the objects' leaves.
        program: compiled for their structure.
    """

    __slots__ = ("_donated", "_kept", "_written", "binding", "program")

    def __init__(self, binding: Binding, program: Program) -> None:
        self.binding, self.program = binding, program
        self._donated = [binding.variables[i] for i in program.donated]
        kept = [binding.variables[i] for i in program.kept]
        self._kept = None if any(v is None for v in kept) else kept
        self._written: dict[Plan, list[Any]] = {}

    def inputs(self, name: str, arrays: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """Return what the program takes, read from the Variables now.

        Raises:
            InputError: an array that would be overwritten is also held elsewhere.
        """
        donated = list(map(read_variable, self._donated))
        if donated and max(map(sys.getrefcount, donated)) > _HELD_ONCE:
            paths = self._held_elsewhere(donated)
            if paths:
                donated.clear()  # or the traceback would hold them, too
                raise _refusal(name, paths)
        if self._kept is None:
            kept = list(map(self.binding.read().__getitem__, self.program.kept))
        else:
            kept = list(map(read_variable, self._kept))
        if not self.program.given:
            return donated, [], kept, arrays
        given = set(self.program.given)
        others = [x for i, x in enumerate(arrays) if i not in given]
        gone = [arrays[i] for i in self.program.given]
        if not _are_apart(gone, (donated, kept, others)):
            for held in (donated, gone, kept, others):
                held.clear()
            raise InputError(
                f"{name} donates the memory of an argument, so each of its arrays must be given "
                "once, and no object of the call may hold it; give a copy, jnp.copy(x)"
            )
        return donated, gone, kept, others

    def write(self, objects: Sequence[Any], result: Any, always: list[Any], update: Update) -> Any:
        """Write back what a run changed; return its result, with its objects in place."""
        ((plan, values),) = update.items()
        if plan.structure is not None:
            return self._restructure(objects, result, always, plan, values)
        if always:
            deque(map(write_variable, self._donated, always), 0)
        if values:
            deque(map(write_variable, self._variables_of(plan), values), 0)
        return result

    def write_inside(
        self, objects: Sequence[Any], result: Any, always: list[Any], update: Update
    ) -> Any:
        """Write back in an outer trace, through Flax, which refuses what is another trace's."""
        ((plan, values),) = update.items()
        if plan.structure is not None:
            return self._restructure(objects, result, always, plan, values)
        for variable, value in zip(self._variables_of(plan), values, strict=True):
            variable.set_raw_value(value)
        return result

    def _variables_of(self, plan: Plan) -> list[Any]:
        found = self._written.get(plan)
        if found is None:
            gone = set(self.program.donated)
            variables = self.binding.variables
            found = self._written[plan] = [variables[i] for i in plan.changed if i not in gone]
        return found

    def _restructure(
        self, objects: Sequence[Any], result: Any, always: list[Any], plan: Plan, new: list[Any]
    ) -> Any:
        leaves = self.binding.read()
        for i, value in zip(self.program.donated, always, strict=True):
            leaves[i] = value
        rest = iter(new)
        values = [next(rest) if i is None else leaves[i] for i in plan.sources]
        _, inside = restructure(tuple(objects), plan.structure, values)
        return jax.tree.map(
            lambda x: inside[x.number] if isinstance(x, Mark) else x,
            result,
            is_leaf=lambda x: isinstance(x, Mark),
        )

    def _held_elsewhere(self, donated: list[Any]) -> list[str]:
        counts = list(map(sys.getrefcount, donated))
        return [
            self.binding.paths[i]
            for i, count in zip(self.program.donated, counts, strict=True)
            if count > _HELD_ONCE
        ]


class BoundContainers(Bound):
    """One with donated Variables that hold containers: the arrays in these are looked at, too."""

    __slots__ = ()

    def inputs(self, name: str, arrays: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """Return what the program takes, as `Bound.inputs` does."""
        paths = [
            self.binding.paths[i] + place
            for i, variable in zip(self.program.donated, self._donated, strict=True)
            for place in _shared_places(read_variable(variable))
        ]
        if paths:
            raise _refusal(name, paths)
        return super().inputs(name, arrays)


def bound_of(binding: Binding, program: Program) -> Bound:
    """Bind objects to the program for their structure."""
    leaves = binding.read() if program.donated else []
    plain = all(isinstance(leaves[i], jax.Array) for i in program.donated)
    return (Bound if plain else BoundContainers)(binding, program)


def _are_apart(gone: list[Any], others: Any) -> bool:
    """Return whether no array that is given away stands anywhere else."""
    flat = [id(x) for x in jax.tree.leaves(gone) if isinstance(x, jax.Array)]
    return len(set(flat)) == len(flat) and set(flat).isdisjoint(map(id, jax.tree.leaves(others)))


def _shared_places(value: Any) -> list[str]:
    """Return where in a container there is an array, or a container, that something else holds."""
    if isinstance(value, jax.Array):
        return []  # counted where it is held
    is_dict = isinstance(value, dict)
    if is_dict:
        inside = list(value.values())
    else:
        inside = list(value) if isinstance(value, (list, tuple)) else jax.tree.leaves(value)
    counts = list(map(sys.getrefcount, inside))
    if max(counts, default=0) <= _HELD_ONCE and all(map(_is_array, set(map(type, inside)))):
        return []
    places = [f"[{key!r}]" for key in (value if is_dict else range(len(inside)))]
    found: list[str] = []
    for place, x, count in zip(places, inside, counts, strict=True):
        if count <= _HELD_ONCE:
            found += [place + deeper for deeper in _shared_places(x)]
        elif any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x)):
            found.append(place)
    return found


@functools.cache
def _is_array(kind: type) -> bool:
    return issubclass(kind, jax.Array)


def _refusal(name: str, paths: list[str]) -> InputError:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    verb = "is" if len(paths) == 1 else "are"
    copy = "jnp.copy(x)"
    if len(paths) > 1:  # nnx.clone copies the Variables, and not the arrays they hold
        copy += ", of a whole clone nnx.update(clone, jax.tree.map(jnp.copy, nnx.state(clone)))"
    return InputError(
        f"{name} donates its state, so it must be the only one to hold the arrays it "
        f"overwrites; {', '.join(paths[:5])}{more} {verb} also held elsewhere. Make the other a "
        f"copy, {copy}, or drop it"
    )


def _held_once() -> int:
    """Return the count of references to an array that one Variable and one list hold."""
    variable = nnx.Variable(object())
    return max(map(sys.getrefcount, list(map(read_variable, [variable]))))


_HELD_ONCE = _held_once()
