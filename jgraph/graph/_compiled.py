"""A compiled function: how a call is sorted, traced, run, written back and explained."""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterable
from itertools import starmap
from typing import Any, overload

import jax

from jgraph._eager import ASKED, ASKED_LEVEL, jit_is_off
from jgraph.debug import compiled_mode, debug_mode, explain, trim
from jgraph.graph._arguments import Parameters, Sorted, at_least_one, donations
from jgraph.graph._binder import Binder
from jgraph.graph._bound import Bound
from jgraph.graph._captured import Capturing
from jgraph.graph._compiles import COMPILES
from jgraph.graph._graph import Graph
from jgraph.graph._history import History, TooManyGraphsError
from jgraph.graph._leaks import refuse_frozen_variables
from jgraph.graph._nnx import is_object
from jgraph.graph._passes import Passes
from jgraph.graph._paths import function_name
from jgraph.graph._program import NestedObjectsError, Program, Traced
from jgraph.graph._scopes import call_inside
from jgraph.graph._settings import is_inside_trace
from jgraph.graph._signature import Signature, signature_of
from jgraph.graph._strategy import Strategy, checked
from jgraph.graph._tracebacks import release_arrays

# Where a function donates, reading, running and writing is one step: no other call may have read
# an array that this one is about to give away.
_DONATING = threading.RLock()


class Function(Capturing):
    """A compiled function; see `function`."""

    __name__: str
    _anything_donates = False

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        static: str | int | Iterable[str | int] = (),
        donate: str | Iterable[str] = (),
        max_graphs: int | None = None,
        strategy: Strategy | None = None,
        debug: bool | None = None,
        fast_convolutions: bool = True,
        fold_batch_norms: bool = True,
    ) -> None:
        fn, self._args, self._kwargs = _unwrap(fn)
        functools.update_wrapper(self, fn)
        self.fn = fn
        self._name = function_name(fn)
        self._parameters = Parameters.of(fn, static)
        donated = donations(donate, self._parameters)
        self._history = History(self._name, at_least_one("max_graphs", max_graphs))
        self._strategy = checked(strategy)
        self._debug = True if debug is None and ASKED else debug
        self._binder = Binder(
            fn,
            self._name,
            self._parameters,
            donated,
            self._on_trace,
            strategy,
            Passes(fast_convolutions, fold_batch_norms),
        )
        Function._anything_donates |= bool(donated)

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Function: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> BoundFunction: ...
    def __get__(
        self, instance: object | None, owner: type | None = None
    ) -> Function | BoundFunction:
        return self if instance is None else BoundFunction(self, instance)

    def __repr__(self) -> str:
        return f"<jgraph.function {self._name}, {len(self._history.graphs)} graphs>"

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """Every graph that calls have made, in order; `.reason` says why each was made."""
        return tuple(self._history.graphs)

    def explain(self) -> None:
        """Print what was traced and compiled, and why."""
        print(self._history.table())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function, compiled."""
        if self._debug or jit_is_off():
            return self._run_debugging(args, kwargs)
        if self._args or self._kwargs:
            args, kwargs = (*self._args, *args), {**self._kwargs, **kwargs}
        call = self._sort(args, kwargs)
        try:
            if is_inside_trace():
                return self._run_inside(call)
            if Function._anything_donates:
                with _DONATING:
                    return self._run(call)
            return self._run(call)
        except NestedObjectsError:
            call = self._look_through(call, args, kwargs)
        return self._run_nested(call)

    def _run_debugging(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the plain function in debug mode, or the compiled one in spite of it."""
        if self._debug is False:
            with compiled_mode():
                return self(*args, **kwargs)
        call = self._parameters.sort((*self._args, *args), {**self._kwargs, **kwargs})
        with contextlib.nullcontext() if jit_is_off() else debug_mode(ASKED_LEVEL):
            args, kwargs = call.as_traced()
            return self.fn(*args, **kwargs)

    @compiled_mode()
    def graph(self, *args: Any, **kwargs: Any) -> Graph:
        """Trace a call without running it, in debug mode too.

        Args:
            *args: as for a call; `jax.ShapeDtypeStruct` may stand for an array.
            **kwargs: as for a call.

        Returns:
            The graph. The next call of these shapes and types needn't trace again.
        """
        args, kwargs = (*self._args, *args), {**self._kwargs, **kwargs}
        call = self._sort(args, kwargs)
        try:
            bound = self._binder.bound(call, self._binder.objects(call))
        except NestedObjectsError:
            call = self._look_through(call, args, kwargs)
            bound = self._binder.bound(call, self._binder.objects(call))
        graph = self._new_graph(
            bound.program, bound.program.trace(bound.binding.read_abstract(), call.arrays)
        )
        graph.read_state_by(bound.binding.reader())
        return graph

    def _look_through(self, call: Sorted, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sorted:
        """Sort a call again, with the containers open that were found to hold objects."""
        self._parameters.nested |= self._parameters.find_nested(call.layout, call.arrays)
        return self._sort(args, kwargs)

    def _sort(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sorted:
        call = self._parameters.sort(args, kwargs)
        if self._strategy is None:
            return call
        splits = self._strategy.splits(jax.tree.leaves(call.arrays))
        return call._replace(layout=call.layout._replace(splits=splits))

    def _run_nested(self, call: Sorted) -> Any:
        if is_inside_trace():
            return self._run_inside(call)
        with _DONATING:
            return self._run(call)

    def _run(self, call: Sorted) -> Any:
        objects = self._binder.objects(call)
        bound = self._binder.bound(call, objects)
        inputs = bound.inputs(self._name, call.arrays)
        seen = COMPILES.total
        # Filled by one call from C to C: an interrupt comes between two lines of Python, and
        # there it would lose the new state after the old one was given away.
        box: list[Any] = []
        try:
            box.extend(starmap(bound.program.jit, (inputs,)))
            is_new = self._history.fresh or COMPILES.total != seen
            # Before the objects change: the reason speaks of what the call was given.
            signature = self._signature(bound, call, inputs) if is_new else None
            result = bound.write(objects, *box[0])
        except BaseException as error:
            if box:
                bound.write(objects, *box[0])
            try:
                self._explain(error, bound, call, inputs)
            finally:
                for held in (box, *inputs[:3]):
                    held.clear()
                release_arrays(error)
            raise
        if signature is not None:
            self._note(bound, signature, inputs, seen)
        return result

    def _run_inside(self, call: Sorted) -> Any:
        """Run inside an outer trace, whose tracers the objects may hold."""
        objects = self._binder.objects(call)
        bound = self._binder.bind(call)
        inputs = [], [], bound.binding.read(), call.arrays
        try:
            with call_inside(objects):
                outputs = bound.program.jit(*inputs)
        except BaseException as error:
            self._explain(error, bound, call, inputs)
            raise
        if self._history.fresh:
            self._note(bound, self._signature(bound, call, inputs), inputs, COMPILES.total)
        return bound.write_inside(objects, *outputs)

    # What is known about each trace and compilation.

    def _on_trace(self, program: Program, traced: Traced) -> None:
        self._history.add(self._new_graph(program, traced))

    def _new_graph(self, program: Program, traced: Traced) -> Graph:
        refuse_frozen_variables(self._name, self.fn, traced.jaxpr, self._binder.constants)
        labels = self._parameters.labels(program.interface.layout)
        return Graph(
            self._name,
            traced,
            program.interface,
            labels,
            program.donated,
            program.passes,
        )

    def _note(self, bound: Bound, signature: Signature, inputs: Any, seen: int) -> None:
        """Record a graph that this call has traced or compiled."""
        graph, seconds = self._history.take(), COMPILES.since(seen)
        if graph is None and seconds is None:
            return  # it was another thread
        traced = graph is not None
        if graph is None:
            known = bound.program.traced_for(*inputs)
            if known is None:
                return  # something else was compiled, such as a callback's own program
            graph = self._new_graph(bound.program, known)
        graph.compile_seconds = seconds
        graph.read_state_by(bound.binding.reader())
        self._history.record(graph, signature, traced=traced)
        self._history.check()

    def _explain(self, error: BaseException, bound: Bound, call: Sorted, inputs: Any) -> None:
        """Raise a better error where there is one."""
        if isinstance(error, TooManyGraphsError):
            raise self._history.error(self._signature(bound, call, inputs)) from None
        self._history.take()
        explain(error)
        trim(error)
        if self._strategy is not None and "incompatible devices" in str(error):
            error.add_note(
                f"{self._name} runs under {self._strategy!r}: strategy.put(model) places the state "
                "on its devices, and strategy.batches(data) the batches"
            )
        if isinstance(error, TypeError):
            self._binder.check_traceable(call)
        if isinstance(error, jax.errors.ConcretizationTypeError):
            error.add_note(
                f"{self._name} was traced, so its arguments had shapes and types, and no values. "
                "What chooses code is static: jg.function(static='name of the argument')"
            )

    def _signature(self, bound: Bound, call: Sorted, inputs: Any) -> Signature:
        labels = self._parameters.labels(call.layout)
        return signature_of(bound, self._binder.objects(call), call, labels, inputs)


class BoundFunction:
    """A compiled function as a method of one object."""

    def __init__(self, function: Function, instance: object) -> None:
        functools.update_wrapper(self, function.fn)
        self._function, self._instance = function, instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method, compiled."""
        return self._function(self._instance, *args, **kwargs)

    def graph(self, *args: Any, **kwargs: Any) -> Graph:
        """Trace a call without running it; see `Function.graph`."""
        return self._function.graph(self._instance, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def _unwrap(
    fn: Callable[..., Any],
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return a plain function and the arguments that partials and methods have bound to it."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while True:
        if isinstance(fn, BoundFunction):
            fn, args = fn._function, (fn._instance, *args)
        elif isinstance(fn, Function):
            fn, args, kwargs = fn.fn, (*fn._args, *args), {**fn._kwargs, **kwargs}
        elif isinstance(fn, functools.partial):
            fn, args, kwargs = fn.func, (*fn.args, *args), {**fn.keywords, **kwargs}
        elif isinstance(fn, types.MethodType) and is_object(fn.__self__):
            fn, args = fn.__func__, (fn.__self__, *args)
        elif is_object(fn):
            fn, args = type(fn).__call__, (fn, *args)
        else:
            return fn, args, kwargs
