"""Finds, for a call, the bound objects and the program: quickly where they were seen before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jgraph._errors import InputError
from jgraph.graph._arguments import Parameters, Sorted
from jgraph.graph._binding import Binding
from jgraph.graph._bound import Bound, bound_of
from jgraph.graph._captured import Captured
from jgraph.graph._nnx import is_object
from jgraph.graph._passes import EVERY, Passes
from jgraph.graph._program import Interface, NestedObjectsError, Program, Traced
from jgraph.graph._strategy import Strategy

_MOST_BOUND = 64
_MOST_PROGRAMS = 256


class Binder:
    """The bindings and programs of one function.

    Args:
        fn: the function.
        name: its name, for errors.
        parameters: its signature.
        donate: names of arguments whose memory calls may overwrite; "state" for all objects.
        on_trace: see `Program`.
        strategy: see `Program`.
        passes: see `Program`.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str,
        parameters: Parameters,
        donate: frozenset[str],
        on_trace: Callable[[Program, Traced], None],
        strategy: Strategy | None = None,
        passes: Passes = EVERY,
    ) -> None:
        self._passes = passes
        self._fn, self._name, self._parameters = fn, name, parameters
        self._donate, self._on_trace, self._strategy = donate, on_trace, strategy
        self._captured = Captured(fn)
        self._lock = threading.RLock()
        self._bound: OrderedDict[Any, Bound] = OrderedDict()
        self._programs: OrderedDict[Any, Program] = OrderedDict()

    def objects(self, call: Sorted) -> list[Any]:
        """Return a call's objects, and those the function reads from outside."""
        return [*call.objects, *self._captured.objects()] if self._captured.places else call.objects

    def constants(self) -> set[int]:
        """Return the ids of arrays that the function reads from outside as such."""
        return self._captured.constants()

    def bound(self, call: Sorted, objects: list[Any]) -> Bound:
        """Return the objects of a call, bound; those seen before only if nothing changed."""
        key = (call.layout, *map(id, objects))
        found = self._bound.get(key)
        if found is not None and found.binding.holds():
            return found
        with self._lock:
            found = self._bound[key] = self.bind(call, key)
            while len(self._bound) > _MOST_BOUND:
                self._bound.popitem(last=False)
        return found

    def bind(self, call: Sorted, key: Any = None) -> Bound:
        """Bind the objects of a call; without a key they are those of an outer trace.

        Raises:
            InputError: an argument can't be traced, or a Variable can't be bound.
            NestedObjectsError: a container among the arrays holds objects.
        """
        with self._lock:
            self._captured.look_again()
            objects = self.objects(call)
            labels = self._parameters.labels(call.layout).objects
            labels = [*labels, *self._captured.names(taken=labels)]
            bound = self._bound

            def forget() -> None:
                bound.pop(key, None)

            binding = Binding(objects, labels, forget)
            program = self._program(binding, call, inside=key is None)
            return bound_of(binding, program)

    def _program(self, binding: Binding, call: Sorted, *, inside: bool) -> Program:
        identity = binding.structure, call.layout, binding.labels, inside
        program = self._programs.pop(identity, None)
        if program is None:
            self._check_arrays(call)
            interface = Interface(
                call.layout,
                binding.structure,
                binding.labels,
                len(call.objects),
                tuple(binding.roots),
                tuple(binding.paths),
                tuple(v is not None for v in binding.variables),
                tuple(isinstance(v, nnx.Param) for v in binding.variables),
                inside,
                self._parameters.labels(call.layout),
            )
            program = Program(
                self._fn,
                self._captured,
                interface,
                self._on_trace,
                self._strategy,
                self._passes,
            )
            if self._donate and not inside:
                self._choose_donated(program, binding, call)
        self._programs[identity] = program
        while len(self._programs) > _MOST_PROGRAMS:
            self._programs.popitem(last=False)
        return program

    def _choose_donated(self, program: Program, binding: Binding, call: Sorted) -> None:
        """Donate the leaves that the first trace changes, of the objects that may be."""
        leaves = binding.read_abstract()
        traced = program.trace(leaves, call.arrays)
        every = "state" in self._donate
        changed = [
            i
            for i in traced.plan.changed
            if _are_arrays(leaves[i])
            and (every or binding.labels[binding.roots[i]] in self._donate)
        ]
        labels = self._parameters.labels(call.layout).arrays
        arrays = [i for i, x in enumerate(labels) if isinstance(x, str) and x in self._donate]
        program.donate(changed, arrays)

    def _check_arrays(self, call: Sorted) -> None:
        if self._parameters.find_nested(call.layout, call.arrays):
            raise NestedObjectsError
        self.check_traceable(call)

    def check_traceable(self, call: Sorted) -> None:
        """Raise where an argument is neither array nor object nor static.

        Raises:
            InputError: it names the argument.
        """
        paths = self._parameters.labels(call.layout).paths(call.arrays)
        for path, x in zip(paths, jax.tree.leaves(call.arrays), strict=True):
            try:
                jax.typeof(x)
            except TypeError:
                raise InputError(
                    f"{self._name}: arguments must be arrays, numbers, NNX objects or pytrees of "
                    f"them, and {path} is the {type(x).__name__} {x!r:.60}; {_advice(path, x)}"
                ) from None


def _advice(path: str, x: Any) -> str:
    """Say what to do with an argument that can't be traced."""
    held = [name for name, value in getattr(x, "__dict__", {}).items() if is_object(value)]
    if held:
        return (
            f"pass {path}.{held[0]}, which it holds, as an argument of its own, or make "
            f"{type(x).__name__} an nnx.Module"
        )
    return f"to choose code by it write jg.function(static={path.partition('[')[0]!r})"


def _are_arrays(leaf: Any) -> bool:
    """Return whether there is memory to give away: a Variable may hold a number."""
    return all(isinstance(x, (jax.Array, jax.ShapeDtypeStruct)) for x in jax.tree.leaves(leaf))
