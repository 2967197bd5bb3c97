"""One pure, jit-compiled function for one structure of objects and arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.core
from jax.extend.core import ClosedJaxpr

from jgraph._collection import no_collection
from jgraph._errors import InputError
from jgraph.graph._arguments import Labels, Layout
from jgraph.graph._captured import Captured
from jgraph.graph._nnx import (
    flatten,
    flatten_again,
    flatten_with_paths,
    is_boundary,
    is_object,
    objects_within,
    read_variable,
    unflatten,
)
from jgraph.graph._passes import EVERY, NONE, Passes, run_passes
from jgraph.graph._paths import function_name, join_path, tree_path
from jgraph.graph._read_only import ReadOnly, same_arrays
from jgraph.graph._scopes import drop_scopes, function_scopes
from jgraph.graph._settings import settings_now
from jgraph.graph._stand_in import stand_for
from jgraph.graph._strategy import Body, Output, Strategy, on_one_device
from jgraph.graph._synchronised import synchronised


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a traced program's outputs are, decided while tracing; hashed by identity.

    The outputs are the result's arrays, then the arrays of new values of leaves.
    """

    result: Any
    """Structure of the result, with a `Mark` where an NNX object stood."""
    num_results: int
    values: Any
    """Structure of the list of new values."""
    changed: tuple[int, ...] = ()
    """The leaves whose new values these are."""
    structure: Any = None
    """The structure of (objects, objects in the result), None if nothing but values changed."""
    sources: tuple[int | None, ...] = ()
    """For each leaf of that structure the old leaf it is, or None: it is the next new value."""
    state: tuple[tuple[str, int], ...] = ()
    """The path of each leaf of the objects, and which leaf of that structure it is."""
    returned: tuple[tuple[tuple[str, int], ...], ...] = ()
    """The same for each object in the result."""


class Traced(NamedTuple):
    """A traced call: `jaxpr` maps the leaves and the arrays, flat, to the plan's outputs."""

    jaxpr: ClosedJaxpr
    plan: Plan
    structure: Any
    """Structure of (leaves, arrays)."""

    @property
    def avals(self) -> list[jax.ShapeDtypeStruct]:
        """The types of its inputs."""
        return [
            jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)
            for x in self.jaxpr.in_avals
        ]

    def run(self, flat: Sequence[Any]) -> list[Any]:
        """Run it on inputs of these types."""
        return jax.core.eval_jaxpr(self.jaxpr.jaxpr, self.jaxpr.consts, *flat)

    def check(self, owner: object, paths: Sequence[str], flat: Sequence[Any]) -> None:
        """Raise where inputs aren't of the types it takes.

        Raises:
            InputError: it names the input.
        """
        for path, aval, x in zip(paths, self.avals, flat, strict=True):
            if type_text(x) != type_text(aval):
                raise InputError(
                    f"{path} must be {type_text(aval)} as {owner!r} was traced, got "
                    f"{type_text(x)}; trace another graph for it, or, where sizes are open, save "
                    "and load this one"
                )


class NestedObjectsError(Exception):
    """A container among the arrays turned out to hold NNX objects."""


# New values of leaves under the plan that says whose. A dict, since its key is what jax.jit hands
# back with the arrays without running Python.
Update: TypeAlias = dict[Plan, Any]


class Mark(NamedTuple):
    """Stands in a result for the NNX object of this number; a pytree node without leaves."""

    number: int


jax.tree_util.register_pytree_node(Mark, lambda m: ((), m.number), lambda n, _: Mark(n))


class Interface(NamedTuple):
    """What a program takes.

    Args:
        layout: how a call's arguments were sorted.
        structure: the objects': arguments first, then captured ones.
        labels: the objects' names.
        num_arguments: how many of them are arguments.
        roots: for each leaf, the number of its object.
        paths: for each leaf, its name.
        in_variable: for each leaf, whether a Variable holds it.
        is_param: for each leaf, whether it is an `nnx.Param`.
        inside: whether calls are part of an outer trace.
        arguments: the names of a call's arrays.
    """

    layout: Layout
    structure: Any
    labels: tuple[str, ...]
    num_arguments: int
    roots: tuple[int, ...]
    paths: tuple[str, ...]
    in_variable: tuple[bool, ...]
    is_param: tuple[bool, ...]
    inside: bool
    arguments: Labels

    def input_paths(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> list[str]:
        """Return the path of each of the program's inputs, in order: the state's, the arrays'."""
        state = [
            path + tree_path(p)
            for path, leaf in zip(self.paths, leaves, strict=True)
            for p, _ in jax.tree.leaves_with_path(leaf)
        ]
        return state + self.arguments.paths(arrays)


class Program:
    """A function of leaves and arrays, compiled by jax.jit once per shapes and types.

    Args:
        fn: what to run, on objects and arrays.
        captured: the objects it reads from outside.
        interface: what it takes.
        on_trace: called with the program and each call that jit traces; what it raises ends it.
        strategy: where it runs; None for wherever its arrays are.
        passes: which of them run.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        captured: Captured,
        interface: Interface,
        on_trace: Callable[[Program, Traced], None],
        strategy: Strategy | None = None,
        passes: Passes = EVERY,
    ) -> None:
        # What is inside an outer trace is seen by that trace's owner, and drawn and saved; the
        # outermost program's passes reach it.
        self.passes = passes if on_one_device(strategy) and not interface.inside else NONE
        self._fn, self._captured, self.interface = fn, captured, interface
        self._on_trace, self._strategy = on_trace, strategy
        self._waiting: deque[tuple[Any, Traced]] = deque(maxlen=4)
        self._made: dict[Any, Traced] = {}
        self.donate((), ())

    def donate(self, leaves: Sequence[int], arrays: Sequence[int]) -> None:
        """Choose the leaves and the arrays whose memory a call may overwrite."""
        self.donated, self.given = tuple(leaves), tuple(arrays)
        gone = set(leaves)
        self.kept = tuple(i for i in range(len(self.interface.paths)) if i not in gone)

        def run(donated: Any, given: Any, kept: Any, arrays: Any) -> Any:
            return self._run(donated, given, kept, arrays)

        run.__name__ = run.__qualname__ = getattr(self._fn, "__name__", "graph")
        self.jit = jax.jit(run, donate_argnums=(0, 1) if leaves or arrays else ())

    def trace(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> Traced:
        """Run the function on abstract values; the next call of these types needn't."""
        traced = self._take(leaves, arrays) or self._trace(leaves, arrays)
        self._waiting.append((_types(leaves, arrays), traced))
        return traced

    def traced_for(self, donated: Any, given: Any, kept: Any, arrays: Any) -> Traced | None:
        """Return what jit has traced for a call of these types, if it has."""
        leaves = _merge(donated, self.donated, kept)
        return self._made.get(_types(leaves, _merge(given, self.given, arrays)))

    def _run(self, donated: Any, given: Any, kept: Any, arrays: Any) -> Any:
        leaves = _merge(donated, self.donated, kept)
        all_arrays = _merge(given, self.given, arrays)
        traced = self._take(leaves, all_arrays) or self._trace(leaves, all_arrays)
        self._on_trace(self, traced)
        self._made[_types(leaves, all_arrays)] = traced
        plan, name = traced.plan, function_name(self._fn)
        jaxpr = run_passes(traced.jaxpr, self.passes, name=name)
        inputs = jax.tree.leaves((leaves, all_arrays))
        outputs = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *inputs)
        result = jax.tree.unflatten(plan.result, outputs[: plan.num_results])
        values = jax.tree.unflatten(plan.values, outputs[plan.num_results :])
        if plan.structure is not None:
            return result, [leaves[i] for i in self.donated], {plan: values}
        new = {i: self._placed(i, value) for i, value in zip(plan.changed, values, strict=True)}
        always = [new.get(i, leaves[i]) for i in self.donated]
        others = [new[i] for i in self._written(plan)]
        return result, always, {plan: others}

    def _placed(self, leaf: int, value: Any) -> Any:
        strategy, face = self._strategy, self.interface
        if strategy is None:
            return value
        # Within its object, as `strategy.put(model)` has named it.
        path = face.paths[leaf].removeprefix(face.labels[face.roots[leaf]])
        return jax.tree.map_with_path(lambda p, x: strategy.placed(path + tree_path(p), x), value)

    def _written(self, plan: Plan) -> list[int]:
        gone = set(self.donated)
        return [i for i in plan.changed if i not in gone]

    def _take(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> Traced | None:
        types = _types(leaves, arrays)
        for item in list(self._waiting):
            if item[0] == types:
                with contextlib.suppress(ValueError):  # another thread has taken it too
                    self._waiting.remove(item)
                return item[1]
        return None

    def _trace(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> Traced:
        plans: list[Plan] = []

        def body(*flat: Any) -> list[Any]:
            outputs, plan = self._body(*jax.tree.unflatten(structure, flat))
            plans.append(plan)
            return outputs

        flat, structure = jax.tree.flatten((list(leaves), list(arrays)))
        stand_for(body, self._fn, self.interface.input_paths(leaves, arrays))
        run = body
        if self._strategy is not None:
            run = self._under(self._strategy, body, plans, len(jax.tree.leaves(list(leaves))))
        with no_collection():
            return Traced(jax.make_jaxpr(run)(*flat), plans[0], structure)

    def _under(self, strategy: Strategy, body: Body, plans: list[Plan], num_state: int) -> Body:
        """Return the body as its strategy runs it."""

        @functools.wraps(body)
        def run(*flat: Any) -> list[Any]:
            state, arrays = list(flat[:num_state]), list(flat[num_state:])
            splits = self.interface.layout.splits or (None,) * len(arrays)
            return strategy.run(body, state, arrays, splits, lambda: self._outputs(plans[0]))

        return run

    def _outputs(self, plan: Plan) -> list[Output]:
        """Return what the outputs of a plan are."""
        result = jax.tree.unflatten(plan.result, range(plan.num_results))
        found = [
            Output("result" + tree_path(p), is_state=False)
            for p, _ in jax.tree.leaves_with_path(result)
        ]
        numbered = jax.tree.unflatten(plan.values, range(plan.values.num_leaves))
        paths = [self.interface.paths[i] for i in plan.changed]
        if plan.structure is not None:
            names = {number: path for path, number in plan.state}
            new = (i for i, source in enumerate(plan.sources) if source is None)
            paths = [names.get(i, "an object in the result") for i in new]
        return found + [
            Output(path + tree_path(p), is_state=True)
            for path, value in zip(paths, numbered, strict=True)
            for p, _ in jax.tree.leaves_with_path(value)
        ]

    def _body(self, leaves: list[Any], arrays: list[Any]) -> tuple[list[Any], Plan]:
        face = self.interface
        if any(map(is_object, jax.tree.leaves(arrays, is_leaf=is_boundary))):
            raise NestedObjectsError
        # Before the function runs: it may change a container that a Variable holds in place.
        before = [jax.tree.flatten(leaf) for leaf in leaves]
        objects, numbers = unflatten(face.structure, leaves)
        drop_scopes(objects)  # an outer trace's: this program may be used in several places of it
        given, outside = objects[: face.num_arguments], objects[face.num_arguments :]
        args, kwargs = face.layout.restore(given, arrays)
        read_only = ReadOnly(outside, face.labels[face.num_arguments :], given)
        nodes = objects_within(objects)
        scopes = function_scopes(face.labels, objects)
        with self._captured.replaced(outside) as fn, scopes, synchronised(objects):
            result = fn(*args, **kwargs)
        found, tree = jax.tree.flatten(result, is_leaf=is_boundary)
        inside = [x for x in found if is_object(x)]
        drop_scopes((objects, inside))
        read_only.check(function_name(self._fn))
        marks = map(Mark, range(len(inside)))
        marked = jax.tree.unflatten(tree, [next(marks) if is_object(x) else x for x in found])
        results, described = jax.tree.flatten(marked)
        same = all(map(operator.is_, objects_within(objects), nodes))
        new, plan = self._outcome(objects, inside, numbers, before, same=same)
        values, structure = jax.tree.flatten(new)
        plan = dataclasses.replace(
            plan, result=described, num_results=len(results), values=structure
        )
        return results + values, plan

    def _outcome(
        self,
        objects: tuple[Any, ...],
        inside: list[Any],
        numbers: Any,
        before: list[Any],
        *,
        same: bool,
    ) -> tuple[list[Any], Plan]:
        """Return the new values, and whose they are; `same` objects needn't be put in place."""
        face = self.interface
        structure, leaves = flatten(objects)
        if same and not inside and structure == face.structure:
            changed = [
                i
                for i, (old, leaf) in enumerate(zip(before, leaves, strict=True))
                if not same_arrays(old, leaf)
            ]
            if all(face.in_variable[i] for i in changed):
                return [leaves[i] for i in changed], Plan(None, 0, None, tuple(changed))
        structure, flat = flatten_again((objects, inside), numbers)
        values = [read_variable(x) if is_object(x) else x for _, x in flat]
        old = {id(arrays[0]): i for i, (arrays, _) in enumerate(before) if len(arrays) == 1}
        sources = tuple(old.get(id(value)) for value in values)
        new = [value for value, source in zip(values, sources, strict=True) if source is None]
        at = {id(value): i for i, value in enumerate(values)}
        state = [
            named
            for label, x in zip(face.labels, objects, strict=True)
            for named in _named_leaves(label, x, at)
        ]
        returned = tuple(tuple(_named_leaves("", x, at)) for x in inside)
        return new, Plan(
            None, 0, None, (), structure, sources, tuple(dict(state).items()), returned
        )


def _named_leaves(label: str, x: Any, at: Mapping[int, int]) -> list[tuple[str, int]]:
    _, flat = flatten_with_paths(x)
    return [
        (join_path(label, path), at[id(read_variable(leaf) if is_object(leaf) else leaf)])
        for path, leaf in flat
    ]


def _merge(chosen: Sequence[Any], indices: Sequence[int], others: Sequence[Any]) -> list[Any]:
    """Return all items in order: the chosen ones have these indices."""
    at = dict(zip(indices, chosen, strict=True))
    rest = iter(others)
    return [at[i] if i in at else next(rest) for i in range(len(at) + len(others))]


def type_text(x: Any) -> str:
    """Return an array's type, `float32[4, 3]`."""
    try:
        aval = jax.typeof(x)
    except TypeError:
        return f"the {type(x).__name__} {x!r:.60}"
    return f"{aval.dtype}{list(aval.shape)}"


def _types(leaves: Sequence[Any], arrays: Sequence[Any]) -> Any:
    """Return what a trace of these depends on, to be hashed."""
    flat, structure = jax.tree.flatten((list(leaves), list(arrays)))
    return tuple(map(jax.typeof, flat)), structure, tuple(settings_now().values())
