"""Forward-mode derivatives on plain arrays: each operation carries its tangents along."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jgraph._eager import THREAD, as_array
from jgraph.debug import _private as private
from jgraph.debug._trace import Differentiating, is_inexact, own, runs_at_once, zeros_like


class Forward(Differentiating):
    """Computes the tangent of whatever depends on its inputs."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        self._tangents: dict[int, Any] = {}

    def tangent(self, x: Any) -> Any:
        """Return a value's tangent."""
        found = self._tangents.get(id(x))
        return zeros_like(x) if found is None else found

    def carry(self, values: Sequence[Any], tangents: Sequence[Any]) -> None:
        """Take note of tangents."""
        for x, tangent in zip(values, tangents, strict=True):
            if is_inexact(x) and not isinstance(tangent, private.ZEROS):
                self.live[id(x)], self._tangents[id(x)] = x, tangent

    def apply(self, primitive: Any, args: Any, params: Any) -> list[Any]:
        alive = self.alive(args)
        if not alive:
            return super().apply(primitive, args, params)
        return self._push(functools.partial(primitive.bind, **params), args, alive)

    def _push(self, function: Callable[..., Any], args: Any, alive: list[int]) -> list[Any]:
        def of_alive(*chosen: Any) -> list[Any]:
            full = list(args)
            for i, x in zip(alive, chosen, strict=True):
                full[i] = x
            result = function(*full)
            return list(result) if isinstance(result, (list, tuple)) else [result]

        primals = tuple(args[i] for i in alive)
        with private.set_current_trace(self.parent):
            outputs, tangents = private.jvp(of_alive, primals, tuple(map(self.tangent, primals)))
        outputs = self.distinct(args, outputs)
        self.carry(outputs, tangents)
        return outputs

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, args: Any, /, *, symbolic_zeros: bool
    ) -> Any:
        alive = self.alive(args)
        if not alive:
            return super().process_custom_jvp_call(
                primitive, fun, jvp, args, symbolic_zeros=symbolic_zeros
            )
        args = self.arrays(args)
        with private.set_current_trace(self.parent):
            tangents = [
                self.tangent(x) if i in alive else private.no_tangent(x, symbolic=symbolic_zeros)
                for i, x in enumerate(args)
            ]
        with private.set_current_trace(Differentiating(self.parent, self.sealed(args))):
            found = jvp.call_wrapped(*args, *tangents)
        count = len(found) // 2
        outputs = self.distinct(args, found[:count])
        self.carry(outputs, found[count:])
        return outputs

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **params: Any
    ) -> Any:
        if self.alive(args):
            raise TypeError(
                "can't apply forward-mode differentiation (jvp) to a custom_vjp function; "
                "jax.custom_jvp gives a function both modes"
            )
        return super().process_custom_vjp_call(primitive, fun, fwd, bwd, args, **params)

    def process_shard_map(self, primitive: Any, function: Any, args: Any, /, **params: Any) -> Any:
        tree = super().process_shard_map(primitive, function, args, **params)
        if not self.live:
            return tree
        call, every = self.staged(primitive, function, args, params)
        alive = self.alive(every)
        return tree.update(self._push(call, every, alive)) if alive else tree


def jvp(fun: Callable[..., Any], primals: Any, tangents: Any, has_aux: bool = False) -> Any:
    """`jax.jvp` in debug mode: the function runs on plain arrays."""
    parent = private.current_trace()
    if THREAD.mode is None or not runs_at_once(parent):
        return private.jvp(fun, primals, tangents, has_aux=has_aux)
    private.jvp(lambda *xs: xs, primals, tangents)  # refuses what doesn't fit, in JAX's words
    leaves, tree = jax.tree.flatten(primals)
    leaves = [own(parent, x) if is_inexact(x) else as_array(x) for x in leaves]
    trace = Forward(parent)
    trace.carry(leaves, jax.tree.leaves(tangents))
    with private.set_current_trace(trace):
        result = fun(*jax.tree.unflatten(tree, leaves))
    result, *aux = result if has_aux else (result,)
    outputs, structure = jax.tree.flatten(result)
    outputs = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in outputs]
    pushed = jax.tree.unflatten(structure, list(map(trace.tangent, outputs)))
    return (jax.tree.unflatten(structure, outputs), pushed, *aux)
