"""Gradients on plain arrays: operations are recorded while they run, and played backwards."""

from __future__ import annotations

import collections
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp

from jgraph._eager import THREAD, as_array
from jgraph.debug import _private as private
from jgraph.debug._frames import Place, Places
from jgraph.debug._nonfinite import backward_of, check_pulled
from jgraph.debug._trace import (
    Differentiating,
    Eager,
    Sealed,
    float0,
    is_inexact,
    own,
    runs_at_once,
    zeros_like,
)

# Tests check types at run time, by functions around each function.
_CHECKERS = ("jaxtyping", "beartype", "jgraph.debug")
Pull = Callable[["Node", list[Any]], Sequence[Any]]


class Node:
    """One recorded operation.

    Attributes:
        name: the operation's.
        args: what it was given.
        alive: which of these depend on what is differentiated.
        outputs: what it returned.
        pull: from this and the cotangents of all outputs to those of the living arguments; it
            must not hold this, or only Python's collector would free both.
        place: where in the user's program it is, if checks are on.
    """

    __slots__ = ("alive", "args", "name", "outputs", "place", "pull")

    def __init__(
        self, name: str, args: list[Any], alive: list[int], outputs: list[Any], place: Place | None
    ) -> None:
        self.name, self.args, self.alive, self.outputs = name, args, alive, outputs
        self.place = place
        self.pull: Pull


class Tape(Differentiating):
    """Records what depends on its inputs."""

    def __init__(self, parent: Any, sealed: Sealed | None = None) -> None:
        super().__init__(parent, sealed)
        self._nodes: list[Node] = []
        self._places = Places()

    def apply(self, primitive: Any, args: Any, params: Any) -> list[Any]:
        outputs = super().apply(primitive, args, params)
        alive = self.alive(args)
        if not alive:
            return outputs
        if getattr(primitive, "ref_primitive", False):
            raise NotImplementedError(
                "debug mode doesn't differentiate through mutable arrays (jax.new_ref); "
                "jg.function(debug=False) runs the function that has them compiled"
            )
        node = self.record(primitive.name, args, alive, outputs)
        node.pull = functools.partial(_pull_primitive, primitive, params)
        return node.outputs

    def record(self, name: str, args: Any, alive: list[int], outputs: list[Any]) -> Node:
        """Take note of an operation; its outputs are objects of their own from here on."""
        mode = THREAD.mode
        place = self._places.here(sys._getframe(1)) if mode is not None and mode.check else None
        node = Node(name, list(args), alive, self.distinct(args, outputs), place)
        self.live.update((id(x), x) for x in node.outputs if is_inexact(x))
        self._nodes.append(node)
        return node

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, args: Any, /, *, symbolic_zeros: bool
    ) -> Any:
        alive = self.alive(args)
        if not alive:
            return super().process_custom_jvp_call(
                primitive, fun, jvp, args, symbolic_zeros=symbolic_zeros
            )
        args = self.arrays(args)
        try:
            return self._record_rule(primitive, jvp, args, alive, symbolic_zeros=symbolic_zeros)
        except _OnlyTransposedError:
            pass

        def call(*given: Any) -> Any:
            functions = private.call_again(fun), private.call_again(jvp)
            params = {"subfuns": functions, "symbolic_zeros": symbolic_zeros}
            return private.bind_custom(private.current_trace(), primitive, given, params)

        private.call_again(jvp)
        with private.set_current_trace(Differentiating(self.parent, self.sealed(args))):
            outputs = private.call_again(fun).call_wrapped(*args)
        node = self.record(primitive.name, args, alive, list(outputs))
        node.pull = lambda node, cotangents: _vjp(call, alive)(node.args, cotangents)
        return node.outputs

    def _record_rule(
        self, primitive: Any, jvp: Any, args: Any, alive: list[int], *, symbolic_zeros: bool
    ) -> Any:
        """Run a jax.custom_jvp's rule on plain arrays, and record what it does to tangents.

        The rule is linear in them, so at any of them it has the same transpose.
        """
        inner = _Rule(self.parent, self.sealed(args))
        with private.set_current_trace(self.parent):
            tangents = [
                jnp.ones_like(x) if i in alive else private.no_tangent(x, symbolic=symbolic_zeros)
                for i, x in enumerate(args)
            ]
        leaves = [tangents[i] for i in alive]
        inner.live.update((id(x), x) for x in leaves)
        with private.set_current_trace(inner):
            found = jvp.call_wrapped(*args, *tangents)
        count = len(found) // 2
        node = self.record(primitive.name, args, alive, list(found[:count]))
        pushed = list(found[count:])
        node.pull = lambda _, cotangents: inner.backward(pushed, cotangents, leaves)
        return node.outputs

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **params: Any
    ) -> Any:
        alive = self.alive(args)
        if not alive:
            return super().process_custom_vjp_call(primitive, fun, fwd, bwd, args, **params)
        args = self.arrays(args)
        with private.set_current_trace(Differentiating(self.parent, self.sealed(args))):
            flat = fwd.call_wrapped(*(x for i, a in enumerate(args) for x in (a, i in alive)))
        _, tree, forwarded = params["out_trees"]()
        count = tree.num_leaves - sum(f is not None for f in forwarded)
        saved = iter(flat[:count])
        residuals = [next(saved) if f is None else args[f] for f in forwarded]
        node = self.record(primitive.name, args, alive, list(flat[count:]))

        def pull(_: Node, cotangents: list[Any]) -> list[Any]:
            found = private.call_again(bwd).call_wrapped(*residuals, *cotangents)
            gradients = private.cotangents_of(found)
            return [gradients[i] for i in alive]

        node.pull = pull
        return node.outputs

    def process_shard_map(self, primitive: Any, function: Any, args: Any, /, **params: Any) -> Any:
        tree = super().process_shard_map(primitive, function, args, **params)
        if not self.live:
            return tree
        call, every = self.staged(primitive, function, args, params)
        alive = self.alive(every)
        if not alive:
            return tree
        node = self.record("shard_map", every, alive, list(tree))
        node.pull = lambda _, cotangents: _vjp(call, alive)(every, cotangents)
        return tree.update(node.outputs)

    def backward(
        self,
        outputs: Sequence[Any],
        cotangents: Sequence[Any],
        leaves: Sequence[Any],
        *,
        once: bool = False,
    ) -> list[Any]:
        """Return the cotangents of leaves.

        Args:
            outputs: what was made of the leaves.
            cotangents: of the outputs.
            leaves: the inputs.
            once: forget each operation as soon as it has been played.
        """
        found: dict[int, Any] = {}

        def add(x: Any, cotangent: Any) -> None:
            if id(x) not in self.live or cotangent is None or isinstance(cotangent, private.ZEROS):
                return
            if getattr(cotangent, "dtype", None) == jax.dtypes.float0:
                return
            known = found.get(id(x))
            found[id(x)] = cotangent if known is None else jax.lax.add(known, cotangent)

        for x, cotangent in zip(outputs, cotangents, strict=True):
            add(x, cotangent)
        for k in range(len(self._nodes) - 1, -1, -1):
            node = self._nodes[k]
            if any(id(x) in found for x in node.outputs):
                given = [_taken(found, x) for x in node.outputs]
                with backward_of(node):
                    gradients = node.pull(node, given)
                for i, gradient in zip(node.alive, gradients, strict=True):
                    add(node.args[i], gradient)
            if once:  # an id may belong to another object only after it was forgotten
                for x in node.outputs:
                    self.live.pop(id(x), None)
                self._nodes.pop()
        return [found[id(x)] if id(x) in found else zeros_like(x) for x in leaves]


class _OnlyTransposedError(Exception):
    """An operation on tangents can't be run: it is made to be transposed."""


class _Rule(Tape):
    """Records what a rule does to tangents."""

    def apply(self, primitive: Any, args: Any, params: Any) -> list[Any]:
        try:
            return super().apply(primitive, args, params)
        except FloatingPointError:
            raise
        except Exception as error:
            if self.alive(args):
                raise _OnlyTransposedError from error
            raise


def _taken(found: dict[int, Any], x: Any) -> Any:
    known = found.pop(id(x), None)
    return zeros_like(x) if known is None else known


def vjp(fun: Callable[..., Any], *primals: Any, has_aux: bool = False, **options: Any) -> Any:
    """`jax.vjp` in debug mode: the function runs on plain arrays."""
    parent = private.current_trace()
    if THREAD.mode is None or options or not runs_at_once(parent):
        return private.vjp(fun, *primals, has_aux=has_aux, **options)
    leaves, tree = jax.tree.flatten(primals)
    leaves = [own(parent, x) if is_inexact(x) else as_array(x) for x in leaves]
    tape = Tape(parent)
    tape.live.update((id(x), x) for x in leaves if is_inexact(x))
    with private.set_current_trace(tape):
        result = fun(*jax.tree.unflatten(tree, leaves))
    result, *aux = result if has_aux else (result,)
    outputs, structure = jax.tree.flatten(result)
    outputs = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in outputs]
    once = _is_called_by_grad(sys._getframe(1))

    def pull_back(cotangent: Any) -> Any:
        given, found = jax.tree.flatten(cotangent)
        if found != structure:
            raise ValueError(
                "the argument of a function from jax.vjp must have the structure of the "
                f"differentiated function's result, {structure}, got {found}"
            )
        _check_types(outputs, given)
        return jax.tree.unflatten(tree, tape.backward(outputs, given, leaves, once=once))

    return (jax.tree.unflatten(structure, outputs), pull_back, *aux)


def _is_called_by_grad(frame: FrameType | None) -> bool:
    """Return whether `jax.grad` asks, which pulls back exactly once; others may do so again."""
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_CHECKERS):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "value_and_grad_f"


def _check_types(outputs: Sequence[Any], cotangents: Sequence[Any]) -> None:
    for output, cotangent in zip(outputs, cotangents, strict=True):
        want = jax.typeof(output) if is_inexact(output) else jax.typeof(float0(output))
        got = jax.typeof(cotangent)
        if (want.shape, want.dtype) != (got.shape, got.dtype):
            raise ValueError(
                "a cotangent must have the type of the differentiated function's result, "
                f"{want.str_short()}, got {got.str_short()}"
            )


# One operation's backward.


def _vjp(function: Callable[..., Any], alive: Sequence[int]) -> Callable[..., Any]:
    """Return (arguments, cotangents) -> cotangents of the living arguments."""

    def run(args: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        def of_alive(*chosen: Any) -> list[Any]:
            full = list(args)
            for i, x in zip(alive, chosen, strict=True):
                full[i] = x
            result = function(*full)
            return list(result) if isinstance(result, (list, tuple)) else [result]

        return private.vjp(of_alive, *(args[i] for i in alive))[1](list(cotangents))

    return run


class _Compiled:
    """The backward of one operation on one kind of arrays."""

    def __init__(self, primitive: Any, params: Any, alive: tuple[int, ...]) -> None:
        self.run = _vjp(functools.partial(primitive.bind, **params), alive)
        self.uses = 0
        self.jit = jax.jit(self.run)


_COMPILED: collections.OrderedDict[Any, _Compiled] = collections.OrderedDict()
_MOST_COMPILED = 2048
_LOCK = threading.Lock()


def _compiled(node: Node, primitive: Any, params: Any) -> _Compiled | None:
    """Return the compiled backward, None if there is none."""
    types = tuple(map(jax.typeof, node.args))
    key = primitive, tuple(sorted(params.items())), tuple(node.alive), types
    try:
        found = _COMPILED.get(key)
    except TypeError:  # parameters that can't be hashed
        return None
    with _LOCK:
        if found is None:
            found = _COMPILED[key] = _Compiled(primitive, params, key[2])
            if len(_COMPILED) > _MOST_COMPILED:
                _COMPILED.popitem(last=False)
        found.uses += 1
    return found


def _pull_primitive(primitive: Any, params: Any, node: Node, cotangents: list[Any]) -> Any:
    mode, trace = THREAD.mode, private.current_trace()
    every = [*node.args, *cotangents]
    after = None if mode is None else mode.compile_after
    if after is not None and _is_base(trace, every) and all(map(is_inexact, node.outputs)):
        compiled = _compiled(node, primitive, params)
        if compiled is not None and compiled.uses > after:
            with jax.disable_jit(False), private.eval_context():
                gradients = compiled.jit(node.args, cotangents)
            check_pulled(every, gradients)
            return gradients
    return _vjp(functools.partial(primitive.bind, **params), node.alive)(node.args, cotangents)


def _is_base(trace: Any, values: Sequence[Any]) -> bool:
    """Return whether nothing that records would miss an operation on these values."""
    for t in private.parents(trace):
        if isinstance(t, Differentiating) and t.alive(values):
            return False
        if not isinstance(t, (Eager, private.EvalTrace)):
            return False
    return True
