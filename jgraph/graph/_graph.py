"""A graph is a value: a traced program with its state apart, run, costed, drawn, explained."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.typing import DTypeLike

from jgraph._errors import InputError
from jgraph.graph import _picture
from jgraph.graph._arguments import Labels
from jgraph.graph._execution import Execution, Memory
from jgraph.graph._jaxpr import symbolic_sizes
from jgraph.graph._matching import arrays_of, flat_inputs, leaves_of, outcome_of
from jgraph.graph._ops import Op, ops_of
from jgraph.graph._passes import EVERY, Passes
from jgraph.graph._paths import tree_path
from jgraph.graph._picture import Port
from jgraph.graph._program import Interface, Traced

if TYPE_CHECKING:
    from jgraph.graph._file import Stored


class Graph:
    """A traced program as a pure function of its state and its arguments.

    `jgraph.function` makes graphs: `f.graph(*args)` traces one, `f.graphs` holds those that calls
    made. A graph doesn't keep the objects it was traced with alive.

    Attributes:
        name: the function's name.
        reason: why it was traced, in a sentence; "" for one that no call has made.
        jaxpr: the program as traced, a `jax.extend.core.ClosedJaxpr`: of the state's arrays and
            the arguments' arrays, flat, to the result's arrays and the state's new ones.
        compile_seconds: how long XLA took for it, None if it wasn't compiled by a call.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jgraph.graph import function
        >>> model = nnx.Linear(2, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        >>> graph = function(lambda model, x: model(x)).graph(model, jnp.ones((1, 2)))
        >>> sorted(graph.state)
        ['model.bias', 'model.kernel']
        >>> state = {**graph.state, "model.bias": jnp.ones(1)}
        >>> outputs, state = graph.apply(state, jnp.ones((1, 2)))
        >>> print(outputs)
        [[3.]]
    """

    def __init__(
        self,
        name: str,
        traced: Traced | Stored,
        interface: Interface,
        labels: Labels,
        donated: Sequence[int] = (),
        passes: Passes = EVERY,
    ) -> None:
        self.name = name
        self.reason = ""
        self.compile_seconds: float | None = None
        self._traced, self._interface, self._labels = traced, interface, labels
        self._donated, self._passes = tuple(donated), passes
        self._read_state: Callable[[], list[Any] | None] = lambda: None

    def read_state_by(self, read: Callable[[], list[Any] | None]) -> None:
        """Tell it how to read the leaves of the objects it was traced with."""
        self._read_state = read

    @property
    def jaxpr(self) -> ClosedJaxpr:
        return self._traced.jaxpr

    def __repr__(self) -> str:
        return f"Graph({self.name!r}, {len(self.jaxpr.eqns)} operations)"

    # What goes in and comes out.

    @functools.cached_property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays among the arguments, by path, such as `batch['picture']`."""
        count = self._num_state
        return dict(zip(self._argument_paths, self._avals[count:], strict=True))

    @functools.cached_property
    def outputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of the result, by path, such as `result[0]`."""
        plan = self._traced.plan
        avals = map(_struct, self.jaxpr.out_avals[: plan.num_results])
        result = jax.tree.unflatten(plan.result, list(avals))
        return {f"result{tree_path(p)}": x for p, x in jax.tree.leaves_with_path(result)}

    @property
    def state(self) -> dict[str, Any]:
        """The arrays of the objects it was traced with, as they are now, by path.

        Raises:
            InputError: the objects are gone, have another structure by now, or are Variables by
                themselves, which can't be referred to without being kept alive.
        """
        leaves = self._read_state()
        if leaves is None:
            raise InputError(
                f"the state of {self!r} is that of the objects it was traced with, which are "
                "gone, have another structure by now, or are single Variables; give a state to "
                "graph.apply(state, …)"
            )
        return dict(zip(self._interface.paths, leaves, strict=True))

    # Running it.

    def apply(
        self, state: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Run the graph as a pure function; it can be jitted, differentiated and mapped.

        Args:
            state: arrays by path, as `state` has them.
            *args: the arguments of the call it was traced from that are neither NNX objects nor
                static, in order. In a container that held objects, None stands in their place.
            **kwargs: those that were passed by keyword.

        Returns:
            What the function returns, and the state after it. An NNX object in the result is a
            dict of its arrays by path.

        Raises:
            InputError: a path is missing or left over, or an array has another shape or dtype.
        """
        leaves = leaves_of(self, self._interface.paths, state)
        arrays = arrays_of(self, self._interface.layout, self._labels, args, kwargs)
        names = [*self._interface.paths, *self._labels.arrays]
        flat = flat_inputs(self, self._traced, names, leaves, arrays)
        self._traced.check(self, self.input_paths, flat)
        outputs = self._execution(*flat)
        return outcome_of(self._traced.plan, self._interface.paths, leaves, outputs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs for these arguments, with `state`."""
        return self.apply(self.state, *args, **kwargs)[0]

    def cast(self, dtype: DTypeLike) -> Graph:
        """Return the graph with float32 replaced by another float type, inside and in its state.

        Its inputs may be of either type; once saved and loaded, of the new one. Sums that the
        original widened to float32 are of the new type, too.

        Args:
            dtype: such as `jax.numpy.bfloat16`.

        Raises:
            GraphFormatError: an operation that graph files don't hold.
        """
        from jgraph.graph._file import stored

        found = stored(self.name, self._traced, self._interface, self._labels)
        graph = Graph(self.name, found.program.cast(dtype), found.interface, found.labels)
        read = self._read_state
        graph.read_state_by(lambda: _as_type(read(), dtype))
        return graph

    # As a file.

    def save(self, path: str | os.PathLike[str], *, state: bool | Mapping[str, Any] = True) -> None:
        """Write the graph to a file, which any later jgraph reads, without this program's source.

        Static arguments keep the values they were traced with. A zip of the operations as JSON and
        the state as safetensors; it holds no code.

        Args:
            path: the file. One that is there is replaced, by a whole new one or not at all.
            state: whether `state` is written along; or another state, as `apply` takes it.

        Raises:
            GraphFormatError: (an InputError) an operation that no file can hold; it names the
                module and the line. Or a program larger than `load` reads.
            InputError: the state is gone; see `state`.
            OSError: the file can't be written.
        """
        leaves = None
        if state is not False:
            given = self.state if state is True else state
            leaves = leaves_of(self, self._interface.paths, given)
        from jgraph.graph._file import write_graph

        write_graph(path, self.name, self._traced, self._interface, self._labels, leaves)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Graph:
        """Read a graph that `save` wrote. Nothing in the file is run as code.

        A loaded graph is called with any sizes that its symbolic sizes allow, and can be jitted,
        differentiated, mapped, cast and run under a strategy.

        Args:
            path: the file.

        Returns:
            The graph; its `state` is the one that was saved.

        Raises:
            GraphFormatError: (an InputError) it is no graph file, or a damaged one; it says where.
            OSError: it can't be read.

        Example:
            >>> import jax, tempfile
            >>> import jax.numpy as jnp
            >>> from jgraph.graph import function
            >>> (n,) = jax.export.symbolic_shape("n")
            >>> graph = function(lambda x: x**2).graph(jax.ShapeDtypeStruct((n,), "float32"))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     graph.save(f"{folder}/square.graph", state=False)
            ...     square = Graph.load(f"{folder}/square.graph")
            >>> print(square.apply({}, jnp.array([1.0, 3.0]))[0])
            [1. 9.]
        """
        from jgraph.graph._file import read_graph

        found = read_graph(path)
        graph = cls(found.name, found.program, found.interface, found.labels)
        leaves = found.state if found.interface.paths else []  # there may be nothing to save
        graph.read_state_by(lambda: leaves)
        return graph

    # What it is.

    @functools.cached_property
    def ops(self) -> tuple[Op, ...]:
        """Its operations: where each stands in the model and in the code, and its cost."""
        return ops_of(self.jaxpr)

    @functools.cached_property
    def flops(self) -> int:
        """Floating-point operations of one run; a multiplication with its addition counts 2.

        Raises:
            InputError: a size is symbolic, so there is no number yet.
        """
        self._check_numbers("FLOPs")
        return sum(op.total_flops for op in self.ops)

    @property
    def memory(self) -> Memory:
        """What it needs on this machine's default device; compiles it.

        Raises:
            InputError: a size is symbolic.
        """
        self._check_numbers("memory and the HLO")
        return self._execution.memory

    @property
    def stablehlo(self) -> str:
        """The program as handed to XLA, after the passes."""
        return self._execution.lowered.as_text()

    @property
    def hlo(self) -> str:
        """The program as XLA has optimised it for this machine; compiles it.

        Raises:
            InputError: a size is symbolic.
        """
        self._check_numbers("memory and the HLO")
        return self._execution.compiled.as_text()

    def text(self, *, depth: int | None = None) -> str:
        """Return its modules as an indented table: shapes, parameters, FLOPs, source lines.

        Args:
            depth: how many levels of modules; None for all.
        """
        inputs, outputs = self._ports
        return _picture.text(self.jaxpr, inputs=inputs, outputs=outputs, depth=depth)

    def draw(self, path: str | os.PathLike[str], *, title: str | None = None) -> None:
        """Draw it: a still picture (`.svg`), or a page whose modules open and close (`.html`).

        Args:
            path: the file to write.
            title: written above it; None takes its name.

        Raises:
            InputError: the path has another ending.
        """
        inputs, outputs = self._ports
        title = self.name if title is None else title
        _picture.draw(self.jaxpr, path, title=title, inputs=inputs, outputs=outputs)

    @property
    def _ports(self) -> tuple[list[Port], list[Port]]:
        is_param = [
            leaf
            for leaf, count in zip(self._interface.is_param, self._leaf_counts, strict=True)
            for _ in range(count)
        ]
        state = zip(self.input_paths, is_param, strict=False)
        inputs = [Port(path, is_state=True, is_param=param) for path, param in state]
        inputs += map(Port, self._argument_paths)
        outputs = [Port(path) for path in self.outputs]
        written = len(self.jaxpr.out_avals) - len(outputs)
        return inputs, outputs + [Port("", is_state=True)] * written

    @functools.cached_property
    def _execution(self) -> Execution:
        donated = [sum(self._leaf_counts[:i]) for i in self._donated if self._leaf_counts[i] == 1]
        return Execution(self.name, self._traced, donated, self._passes)

    def _check_numbers(self, what: str) -> None:
        symbols = symbolic_sizes(self.jaxpr)
        if symbols:
            raise InputError(
                f"the {what} of {self!r} depend on {', '.join(symbols)}, which must have a number; "
                "trace it with sizes that have one"
            )

    # Paths and structures.

    @functools.cached_property
    def _avals(self) -> list[jax.ShapeDtypeStruct]:
        return self._traced.avals

    @functools.cached_property
    def _leaf_counts(self) -> list[int]:
        leaves, _ = jax.tree.unflatten(
            self._traced.structure, range(self._traced.structure.num_leaves)
        )
        return [len(jax.tree.leaves(leaf)) for leaf in leaves]

    @property
    def _num_state(self) -> int:
        return sum(self._leaf_counts)

    @functools.cached_property
    def _argument_paths(self) -> list[str]:
        _, arrays = jax.tree.unflatten(
            self._traced.structure, range(self._traced.structure.num_leaves)
        )
        return self._labels.paths(arrays)

    @functools.cached_property
    def input_paths(self) -> list[str]:
        """The path of each of the program's inputs, in order: the state's, the arguments'."""
        flat = range(self._traced.structure.num_leaves)
        return self._interface.input_paths(*jax.tree.unflatten(self._traced.structure, flat))


def _as_type(leaves: Sequence[Any] | None, dtype: DTypeLike) -> list[Any] | None:
    if leaves is None:
        return None
    return [
        jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, leaf)
        for leaf in leaves
    ]


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
