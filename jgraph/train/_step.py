"""One training step on a flat carry: gradients, update, sums, and a guard."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jgraph._eager import jit_is_off
from jgraph.graph import function, module_scopes
from jgraph.train._objective import LossFn, Measured, measure_loss
from jgraph.train._state import Binding, Leaves, own


class Health(NamedTuple):
    """The number of the step, and the first step, 0 for none, that wasn't finite, with its loss."""

    step: Int[Array, ""]
    bad_step: Int[Array, ""]
    bad_loss: Float[Array, ""]


class Carry(NamedTuple):
    """What one step hands to the next: model and optimizer, flat; the window's sums; health."""

    state: Leaves
    window: Measured
    health: Health


class Stepper:
    """The step of one model, loss function and optimizer.

    The carry is a flat tuple of arrays in one Variable: a step overwrites its memory, and whatever
    interrupts the step, the Variable holds a whole carry. A step whose loss or update isn't finite
    changes nothing but the health, and so do all that follow it: the state is the one after the
    last good step.

    Args:
        binding: how leaves make the model.
        loss_fn: the user's loss function.
        optimizer: an optax transformation; it sees the trainable Params as nested dicts.
        params: leaves of the trainable Params.
        rest: leaves of the other Variables.
    """

    def __init__(
        self,
        binding: Binding,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        params: Leaves,
        rest: Leaves,
    ) -> None:
        self._binding = binding
        self._loss_fn = loss_fn
        self._optimizer = optax.with_extra_args_support(optimizer)
        # Copies, since the steps donate them: the caller's arrays stay.
        self._params, self._rest = tuple(map(own, params)), tuple(map(own, rest))
        with jax.numpy_dtype_promotion("standard"):
            opt_state = self._optimizer.init(binding.params.nest(self._params))
        self._opt_leaves, self._opt_structure = jax.tree.flatten(opt_state)
        self._structure: Any = None
        self._keys: tuple[Any, ...] = ()
        self._carry: nnx.Variable[Leaves] | None = None

        def train_step(carry: nnx.Variable[Leaves], batch: Any) -> tuple[Array, ...]:
            new = self._step(self._unflatten(carry.get_raw_value()), batch)
            carry.set_raw_value(self._flatten(new))
            # A copy of the health, since the next step overwrites the carry.
            return tuple(new.health)

        self.compiled = function(train_step, donate="state")

    @property
    def started(self) -> bool:
        """Whether there is a carry."""
        return self._carry is not None

    def step(self, batch: Any) -> Health:
        """Take a step; the first one makes the carry."""
        if self._carry is None:
            self._carry = nnx.Variable(self._start(batch))
        return Health(*self.compiled(self._carry, batch))

    def _start(self, batch: Any) -> Leaves:
        """Return the carry before the first step; `batch` tells which sums there are."""
        state = (*self._params, *self._rest, *map(own, self._opt_leaves))
        if jit_is_off():
            # Nothing compiles, so the window may grow names; and user code is never traced.
            window = Measured({}, {})
        else:
            arguments = self._params, self._rest, batch
            window = _zeros(jax.eval_shape(lambda *a: self._forward(*a)[1][0], *arguments))
        health = Health(jnp.int32(0), jnp.int32(0), jnp.float32(0))
        return self._flatten(Carry(state, window, health))

    def model_leaves(self) -> tuple[Leaves, Leaves]:
        """Return the leaves of the trainable Params and of the other Variables, as they are."""
        return self._unpack(self._unflatten(self._variable().get_raw_value()).state)[:2]

    def take_window(self) -> Measured:
        """Return the window's sums, and begin another window."""
        variable = self._variable()
        carry = self._unflatten(variable.get_raw_value())
        variable.set_raw_value(self._flatten(carry._replace(window=_zeros(carry.window))))
        return carry.window

    def _variable(self) -> nnx.Variable[Leaves]:
        assert self._carry is not None, "there is a carry from the first step on"
        return self._carry

    def _flatten(self, carry: Carry) -> Leaves:
        # Random keys as plain numbers: jax.jit runs Python to hand out a key, in which Ctrl-C
        # would lose the carry after the old one was given away.
        leaves, self._structure = jax.tree.flatten(carry)
        self._keys = tuple(_key_impl(x) for x in leaves)
        return tuple(
            x if impl is None else jax.random.key_data(x)
            for x, impl in zip(leaves, self._keys, strict=True)
        )

    def _unflatten(self, leaves: Leaves) -> Carry:
        wrapped = [
            x if impl is None else jax.random.wrap_key_data(x, impl=impl)
            for x, impl in zip(leaves, self._keys, strict=True)
        ]
        return jax.tree.unflatten(self._structure, wrapped)

    def _unpack(self, state: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        first = len(self._params)
        middle = first + len(self._rest)
        return state[:first], state[first:middle], state[middle : middle + len(self._opt_leaves)]

    def _forward(
        self, params: Leaves, rest: Leaves, batch: Any
    ) -> tuple[Float[Array, ""], tuple[Measured, Leaves]]:
        model = self._binding.merge(params, rest, train=True)
        with module_scopes([("model", model)]):
            measured = measure_loss(self._loss_fn, model, batch)
        return measured.objective(), (measured, self._binding.read_rest(model, rest))

    def _step(self, carry: Carry, batch: Any) -> Carry:
        params, rest, opt_leaves = self._unpack(carry.state)
        value_and_grad = jax.value_and_grad(self._forward, has_aux=True)
        (loss, (measured, new_rest)), gradients = value_and_grad(params, rest, batch)
        tree = self._binding.params.nest(params)
        opt_state = jax.tree.unflatten(self._opt_structure, opt_leaves)
        # Strict promotion is the user's choice for their code; optax isn't written to it.
        with jax.numpy_dtype_promotion("standard"), jax.named_scope("optimizer"):
            updates, opt_state = self._optimizer.update(
                self._binding.params.nest(gradients), opt_state, tree, value=loss
            )
            new_params = self._binding.params.unnest(optax.apply_updates(tree, updates))
        new_state = (*new_params, *new_rest, *jax.tree.leaves(opt_state))

        number = carry.health.step + 1
        finite = _all_finite((loss, updates))
        good = finite & (carry.health.bad_step == 0)
        first_bad = ~finite & (carry.health.bad_step == 0)
        keep = functools.partial(_keep, good)
        window = carry.window.add(jax.tree.map(lambda x: keep(x, jnp.zeros_like(x)), measured))
        health = Health(
            number,
            jnp.where(first_bad, number, carry.health.bad_step),
            jnp.where(first_bad, loss.astype(jnp.float32), carry.health.bad_loss),
        )
        state = tuple(map(keep, new_state, carry.state))
        return Carry(state, window, health)


def _key_impl(x: Any) -> Any:
    """Return the implementation of a random key, None for another array."""
    return jax.random.key_impl(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else None


def _zeros(shapes: Measured) -> Measured:
    """Return empty sums under the same names."""
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), x.dtype), shapes)


def _keep(good: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Return new where the step was good; what the step left alone isn't copied."""
    if new is old:
        return old
    # The state keeps its types: another one would compile a second program.
    return jnp.where(good, jnp.asarray(new).astype(jnp.asarray(old).dtype), old)


def _all_finite(tree: Any) -> Bool[Array, ""]:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()
