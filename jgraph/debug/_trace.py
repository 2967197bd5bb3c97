"""Runs each operation at once on plain arrays: what all of debug mode is built on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jgraph._eager import as_array
from jgraph.debug import _private as private
from jgraph.debug._nonfinite import check


class Eager(private.Trace):
    """A trace without tracers: it hands each operation on, and subclasses take note of it.

    Args:
        parent: the trace that runs the operations.
    """

    def __init__(self, parent: Any) -> None:
        super().__init__()
        self.parent = parent

    def stage_value(self, val: Any) -> Any:
        return self.parent.stage_value(val)

    def process_primitive(self, primitive: Any, args: Any, params: Any, /) -> Any:
        if primitive is private.remat_p and isinstance(params["jaxpr"], Body):
            with private.set_current_trace(self):
                return [params["jaxpr"](args)]
        outputs = self.apply(primitive, args, params)
        return outputs if primitive.multiple_results else outputs[0]

    def apply(self, primitive: Any, args: Any, params: Any) -> list[Any]:
        """Run one operation, and return all of its outputs."""
        return private.hand_on(self.parent, primitive, args, params)

    def process_call(self, primitive: Any, function: Any, args: Any, params: Any, /) -> Any:
        with private.set_current_trace(self):
            return function.call_wrapped(*args)

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, args: Any, /, *, symbolic_zeros: bool
    ) -> Any:
        params = {"subfuns": (fun, jvp), "symbolic_zeros": symbolic_zeros}
        return private.bind_custom(self.parent, primitive, args, params)

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **params: Any
    ) -> Any:
        params = {"subfuns": (fun, fwd, bwd), **params}
        return private.bind_custom(self.parent, primitive, args, params)

    def process_shard_map(self, primitive: Any, function: Any, args: Any, /, **params: Any) -> Any:
        with private.set_current_trace(self.parent):
            return self.parent.process_shard_map(primitive, function, tuple(args), **params)


class Sealed(NamedTuple):
    """Arrays that may not be read, by id."""

    live: Mapping[int, Any]
    given: frozenset[int]

    def holds_any(self, args: Sequence[Any]) -> bool:
        return any(id(x) in self.live and id(x) not in self.given for x in args)


class Watch(Eager):
    """The outermost trace of debug mode: here every value passes, and is checked."""

    def apply(self, primitive: Any, args: Any, params: Any) -> list[Any]:
        if primitive is jax.lax.integer_pow_p and _is_high_power_of_number(args[0], params["y"]):
            outputs = self._power(args[0], params["y"])
        else:
            outputs = super().apply(primitive, args, params)
        check(primitive, args, outputs, params)
        return outputs

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, args: Any, /, *, symbolic_zeros: bool
    ) -> Any:
        with private.set_current_trace(self):
            return fun.call_wrapped(*map(as_array, args))

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **params: Any
    ) -> Any:
        with private.set_current_trace(self):
            return fun.call_wrapped(*map(as_array, args))

    def process_shard_map(self, primitive: Any, function: Any, args: Any, /, **params: Any) -> Any:
        tree = super().process_shard_map(primitive, function, args, **params)
        check(primitive, args, list(tree), params)
        return tree

    def _power(self, x: Any, exponent: int) -> list[Any]:
        """Raise to an exponent that is an input: one program for all of them.

        Optimizers count steps with it (`decay**count`), and compiled programs do it so too.
        """
        with private.set_current_trace(self.parent):
            return [jax.lax.pow_p.bind(x, as_array(exponent))]


class Differentiating(Eager):
    """A trace that differentiates: arrays that depend on its inputs are known by identity.

    Args:
        parent: the trace that runs the operations.
        sealed: what a rule of the user's may not read, since a derivative with respect to it would
            be lost: ids of arrays, but for those of the rule's own arguments.
    """

    def __init__(self, parent: Any, sealed: Sealed | None = None) -> None:
        super().__init__(parent)
        # Types that lower to others have derivatives of their own: they are lowered by the parent.
        self.requires_low = False
        self.live: dict[int, Any] = {}
        self._sealed = sealed

    def process_primitive(self, primitive: Any, args: Any, params: Any, /) -> Any:
        if self._sealed and self._sealed.holds_any(args):
            raise ValueError(
                "the rule of a jax.custom_vjp or jax.custom_jvp function must not use "
                "differentiated values other than its arguments, and it closes over one; pass that "
                "value as an argument"
            )
        if primitive.name == "stop_gradient":
            output = private.bind(self.parent, primitive, args, params)[0]
            return own(self.parent, output) if output is args[0] else output
        return super().process_primitive(primitive, args, params)

    def arrays(self, args: Sequence[Any]) -> list[Any]:
        """Return the arguments of a rule, numbers among them as arrays."""
        with private.set_current_trace(self.parent):
            return list(map(as_array, args))

    def alive(self, args: Sequence[Any]) -> list[int]:
        """Return which of the arguments depend on what is differentiated."""
        live = self.live
        return [i for i, x in enumerate(args) if id(x) in live]

    def sealed(self, args: Sequence[Any]) -> Sealed:
        """Return what a rule that is given these arguments may not read."""
        return Sealed(self.live, frozenset(map(id, args)))

    def distinct(self, args: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """Return outputs each of which is an object of its own."""
        given, live = frozenset(map(id, args)), self.live
        return [own(self.parent, x) if id(x) in given or id(x) in live else x for x in outputs]

    def staged(
        self, primitive: Any, function: Any, args: Any, params: Any
    ) -> tuple[Callable[..., list[Any]], list[Any]]:
        """Stage a shard_map's body, and return it as a function of all arrays that it reads."""

        def run(*args: Any) -> list[Any]:
            with_tracers = private.current_trace()
            return list(with_tracers.process_shard_map(primitive, function, args, **params))

        with jax.disable_jit(False), private.eval_context():
            closed = jax.make_jaxpr(run)(*args)
        consts = list(closed.consts)

        def call(*values: Any) -> list[Any]:
            given = values[: len(consts)], values[len(consts) :]
            return jax.core.eval_jaxpr(closed.jaxpr, *given[:1], *given[1])

        return call, [*consts, *args]


@dataclasses.dataclass(frozen=True, eq=False)
class Body:
    """Stands for the program of a `jax.checkpoint`, whose function is run instead of traced."""

    function: Callable[..., Any]
    tree: Any
    is_high = False

    def __call__(self, args: Sequence[Any]) -> Any:
        given, named = jax.tree.unflatten(self.tree, map(as_array, args))
        return self.function(*given, **named)


def _is_high_power_of_number(x: Any, exponent: int) -> bool:
    # Narrower types can't hold all exponents.
    wide = getattr(x, "dtype", None) in (np.float32, np.float64)
    return wide and np.ndim(x) == 0 and abs(exponent) > 2


def own(trace: Any, x: Any) -> Any:
    """Return an array as an object of its own: who holds the first one means another value."""
    if not hasattr(x, "dtype"):
        return jnp.asarray(x)
    return private.bind(trace, jax.lax.copy_p, (x,), {})[0]


def is_inexact(x: Any) -> bool:
    """Return whether a value can be differentiated."""
    dtype = getattr(x, "dtype", None)
    return jnp.issubdtype(jax.dtypes.result_type(x) if dtype is None else dtype, jnp.inexact)


def float0(x: Any) -> np.ndarray:
    """Return the zeros that stand for the gradient of what has none."""
    return np.zeros(np.shape(x), jax.dtypes.float0)


def zeros_like(x: Any) -> Any:
    """Return zeros of the type of a value's tangents."""
    return jnp.zeros_like(x) if is_inexact(x) else float0(x)


def runs_at_once(trace: Any) -> bool:
    """Return whether there are values under a trace: plain ones, or those of a whole batch."""
    kinds = (Eager, private.EvalTrace, private.BatchTrace)
    return all(isinstance(t, kinds) for t in private.parents(trace))


def is_plain(trace: Any) -> bool:
    """Return whether values under a trace are plain arrays."""
    return all(isinstance(t, (Eager, private.EvalTrace)) for t in private.parents(trace))
