"""One training step on a flat carry: gradients, update, sums, and a guard."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from jgraph._arrays import own
from jgraph._eager import jit_is_off
from jgraph._errors import InputError
from jgraph._replicas import replica_key
from jgraph.debug import describe_bad, explained, locate
from jgraph.distribute import Strategy
from jgraph.graph import Function, Graph, function, module_scopes, synchronised
from jgraph.train._carry import WINDOW, Carry, Flat, Health, State, as_leaf, as_numbers
from jgraph.train._gradients import gradients
from jgraph.train._guard import all_finite, as_before, finite_part, keep, zeros
from jgraph.train._match import array_type, check_arrays, part_of
from jgraph.train._objective import LossFn, Measured, measure_loss
from jgraph.train._state import Leaves, bind, check_trainable


class Step:
    """A training step of one model, loss function and optimizer; made by `make_step`.

    The carry is a dict of arrays in one Variable: a step overwrites its memory, and whatever
    interrupts the step, the Variable holds a whole carry. A step whose loss or update isn't finite
    leaves the model as it is, and so do all that follow it: the model's state is the one after the
    last good step. Only the health and the optimizer's state, which has no use then, go on.

    Attributes:
        function: the `jgraph.function` that runs a step, with `graphs` and `explain()`.
    """

    function: Function

    def __init__(
        self,
        model: nnx.Module,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        *,
        strategy: Strategy | None,
        trainable: nnx.filterlib.Filter,
        freeze: str | Sequence[str],
        accumulate: int,
        average: float | None,
        compute_dtype: DTypeLike | None,
    ) -> None:
        self._check(model, optimizer, accumulate, average)
        self._model, self._loss_fn, self._strategy = model, loss_fn, strategy
        self._accumulate, self._average = accumulate, average
        self._optimizer = optax.with_extra_args_support(optimizer)
        self.binding, params, rest = bind(
            model, trainable, freeze=freeze, compute_dtype=compute_dtype
        )
        check_trainable(model, self.binding, params)
        self._first = params, rest
        self._carry: nnx.Variable[dict[str, Any]] | None = None
        self._restored: dict[str, Any] = {}
        self._prepare()

        def train_step(carry: nnx.Variable[Any], batch: Any) -> tuple[Any, dict[str, Array]]:
            new, measured = self._step(self._flat.unpack(carry.get_raw_value()), batch)
            carry.set_raw_value(self._flat.pack(new))
            # A copy of the health, since the next step overwrites the carry.
            return tuple(new.health), measured.numbers()

        def train_steps(carry: nnx.Variable[Any], batches: Any) -> tuple[Any, None]:
            def one(arrays: dict[str, Any], batch: Any) -> tuple[dict[str, Any], None]:
                return self._flat.pack(self._step(self._flat.unpack(arrays), batch)[0]), None

            carry.set_raw_value(jax.lax.scan(one, carry.get_raw_value(), batches)[0])
            return tuple(self._flat.unpack(carry.get_raw_value()).health), None

        self.function = function(train_step, donate="state", strategy=strategy)
        self._steps = function(train_steps, donate="state", strategy=strategy)

    def __call__(self, batch: Any) -> dict[str, Array]:
        """Take a step.

        Args:
            batch: a pytree of arrays, best from `strategy.batches`.

        Returns:
            `loss`, its terms where there are several, and the metrics of this batch before the
            update: scalars that are still being computed. If the loss or an update wasn't finite,
            this and all later steps leave the model as it is; `health` names the step.
        """
        return self._run(self.function, self._started(batch), batch)[1]

    def graph(self, batch: Any) -> Graph:
        """Trace the step for a batch without running it; see `jgraph.function`.

        The graph's state is what the step has trained by the time it is read or saved, a dict of
        arrays by path under `carry`; the graph keeps it alive. The next step overwrites the arrays.
        """
        carry = self._started(batch)
        graph = self.function.graph(carry, batch)
        graph.read_state_by(lambda: [dict(carry.get_raw_value())])
        return graph

    @property
    def health(self) -> Health | None:
        """The steps taken, and the first, 0 for none, that wasn't finite; None before any step.

        Plain numbers: it waits for the last step.
        """
        return None if self._carry is None else jax.device_get(self._unpacked().health)

    def locate(self, batch: Any) -> str | None:
        """Say which operation makes this batch's loss, gradients or update not finite.

        It takes the step again in debug mode, from the state after the last good one, and changes
        nothing: for a batch whose step `health` names. The user's loss function runs once more or
        twice, operation by operation.

        Returns:
            A sentence that names the operation, the line, the module's path and what went in; None
            where all is finite.
        """
        carry = self._started(batch).get_raw_value()
        return describe_bad(batch, "the batch") or locate(
            lambda: self._step(self._good_carry(carry), batch)
        )

    @property
    def model(self) -> nnx.Module:
        """The model that the step was made of, given a copy of the state as it is now."""
        if self.started:
            params, rest = self.model_leaves()
            copies = jax.tree.map(jnp.copy, (params, rest))
            self.binding.write_back(self._model, *copies)
        return self._model

    def arrays(self) -> dict[str, Array]:
        """Return the state by path, as a checkpoint holds it; random keys are plain numbers.

        Without the sums since the last log. The next step overwrites the arrays.
        """
        if self._carry is None:
            return self._with_restored(self._flat.pack(self._first_carry(Measured({}, {}))))
        arrays = self._carry.get_raw_value()
        return {name: x for name, x in arrays.items() if part_of(name) != WINDOW}

    def restore(self, arrays: Mapping[str, Any]) -> None:
        """Go on from a state that `arrays` returned, in this process or another; it is copied.

        Args:
            arrays: by path; the state keeps what isn't in it.
        """
        if self._carry is None:
            self._restored |= arrays
            return
        placed = (self._strategy.put if self._strategy else _own_tree)(dict(arrays))
        self._carry.set_raw_value({**self._carry.get_raw_value(), **placed})

    # What the loop needs.

    def advance(self, batch: Any, *, stacked: bool = False) -> Health:
        """Take a step, or one step for each of several stacked batches."""
        if not stacked:
            return Health(*self._run(self.function, self._started(batch), batch)[0])
        carry = self._started(batch, stacked=True)
        return Health(*self._run(self._steps, carry, batch)[0])

    @property
    def started(self) -> bool:
        """Whether there is another state than the model was passed in with."""
        return self._carry is not None or bool(self._restored)

    def model_leaves(self, *, averaged: bool = False) -> tuple[Leaves, Leaves]:
        """Return the leaves of the trainable Params and of the other Variables, as they are."""
        state = self._unpacked().state
        return state.average if averaged and state.average else state.params, state.rest

    def window_arrays(self) -> dict[str, Array]:
        """Return the sums since the last log by path, as `restore` takes them too."""
        arrays = {} if self._carry is None else self._carry.get_raw_value()
        return {name: x for name, x in arrays.items() if part_of(name) == WINDOW}

    def named_model(self, params: Leaves, rest: Leaves) -> dict[str, Array]:
        """Return the model's leaves by path; random keys are plain numbers."""
        return dict(zip(self._flat.model_names, map(as_numbers, (*params, *rest)), strict=True))

    def model_from(self, arrays: Mapping[str, Any]) -> tuple[Leaves, Leaves]:
        """Undo `named_model`."""
        params, rest = self._first
        olds = zip(self._flat.model_names, (*params, *rest), strict=True)
        leaves = tuple(as_leaf(jnp.asarray(arrays[name]), old) for name, old in olds)
        return leaves[: len(params)], leaves[len(params) :]

    def take_window(self) -> Measured:
        """Return the window's sums, and begin another window."""
        variable = self._variable()
        carry = self._flat.unpack(variable.get_raw_value())
        # Where the old sums are: elsewhere they would compile the step a second time.
        empty = jax.tree.map(jnp.zeros_like, carry.window)
        variable.set_raw_value(self._flat.pack(carry._replace(window=empty)))
        return carry.window

    @staticmethod
    def _run(function: Callable[..., Any], carry: nnx.Variable[Any], batch: Any) -> Any:
        """Take a step; where debug mode stops it, say so if the batch had brought the NaN along."""
        try:
            return function(carry, batch)
        except FloatingPointError as error:
            bad = describe_bad(batch, "the batch")
            if bad:
                error.add_note(f"jgraph: {bad}")
            raise

    # Before the first step.

    @staticmethod
    def _check(model: Any, optimizer: Any, accumulate: Any, average: Any) -> None:
        check_model_and_optimizer(model, optimizer)
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise InputError(f"accumulate must be a whole number from 1, got {accumulate!r}")
        if average is not None and not 0 < average < 1:
            raise InputError(f"average must be a decay between 0 and 1, or None, got {average!r}")

    def _prepare(self) -> None:
        """Learn the optimizer's structure and the names of everything."""
        params, rest = self.binding.params, self.binding.rest
        opt_state = jax.eval_shape(self._init_optimizer, self._first[0])
        self._opt_structure = jax.tree.structure(opt_state)
        names = [
            "optimizer" + jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(opt_state)
        ]
        average = params.names if self._average is not None else ()
        self._flat = Flat(
            State(
                tuple(f"model.{name}" for name in params.names),
                tuple(f"model.{name}" for name in rest.names),
                tuple(names),
                tuple(f"average.{name}" for name in average),
            )
        )

    def _init_optimizer(self, params: Leaves) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return self._optimizer.init(self.binding.params.nest(params))

    def _started(self, batch: Any, *, stacked: bool = False) -> nnx.Variable[dict[str, Any]]:
        """Return the carry; the first time it is made, and `batch` tells which sums there are."""
        if self._carry is None:
            arrays = self._with_restored(self._flat.pack(self._start(batch, stacked=stacked)))
            self._carry = nnx.Variable(self._strategy.put(arrays) if self._strategy else arrays)
            self._restored = {}
        return self._carry

    def _with_restored(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Return the first arrays with those that were restored in their places."""
        if not jit_is_off():  # where the window has no names yet
            windows = [
                {name: x for name, x in named.items() if part_of(name) == WINDOW}
                for named in (self._restored, arrays)
            ]
            if all(windows):
                saved = {name: array_type(x) for name, x in windows[0].items()}
                check_arrays(saved, windows[1], source="the window of the log that it was saved in")
        return arrays | {n: own(x) for n, x in self._restored.items() if n in arrays}

    def _start(self, batch: Any, *, stacked: bool) -> Carry:
        params, rest = self._first
        if jit_is_off():
            # Nothing compiles, so the window may grow names; and user code is never traced.
            window = Measured({}, {})
        else:
            one = jax.tree.map(lambda x: x[0], batch) if stacked else batch
            forward = functools.partial(self._forward, params, rest)
            window = zeros(jax.eval_shape(lambda x: forward(x)[0].as_part(1), one))
        return self._first_carry(window)

    def _first_carry(self, window: Measured) -> Carry:
        # Copies, since the steps donate them: the caller's arrays stay.
        params, rest = (tuple(map(own, leaves)) for leaves in self._first)
        average = tuple(map(own, params)) if self._average is not None else ()
        # One program, since an optimizer's zeros are one for each shape otherwise. It never returns
        # what it was given, but in debug mode.
        made = jax.tree.leaves(jax.jit(self._init_optimizer)(params))
        is_ours = not jit_is_off()
        optimizer = tuple(
            x if is_ours and not getattr(x, "weak_type", False) else own(x) for x in made
        )
        health = Health(jnp.int32(0), jnp.int32(0), jnp.float32(0))
        return Carry(State(params, rest, optimizer, average), window, health)

    def _good_carry(self, arrays: dict[str, Any]) -> Carry:
        """Return the carry as before the first bad step, but for the optimizer's bad numbers."""
        carry = self._flat.unpack(arrays)
        optimizer = jax.tree.map(finite_part, carry.state.optimizer)
        good = Health(carry.health.step, jnp.int32(0), jnp.float32(0))
        return carry._replace(state=carry.state._replace(optimizer=optimizer), health=good)

    def _variable(self) -> nnx.Variable[dict[str, Any]]:
        assert self._carry is not None, "there is a carry from the first step on"
        return self._carry

    def _unpacked(self) -> Carry:
        if self._carry is None:
            return self._flat.unpack(self.arrays())
        return self._flat.unpack(self._carry.get_raw_value())

    # The step itself.

    def _forward(self, params: Leaves, rest: Leaves, batch: Any) -> tuple[Measured, Leaves]:
        mine = tuple(map(replica_key, rest))
        model = self.binding.merge(params, mine, train=True)
        with module_scopes([("model", model)]), synchronised(model), explained():
            measured = measure_loss(self._loss_fn, model, batch)
        new = self.binding.read_rest(model, mine)
        # What rests is what it was before: a replica's own keys are made anew at each step.
        after = zip(new, mine, rest, strict=True)
        return measured, tuple(old if x is given else x for x, given, old in after)

    def _step(self, carry: Carry, batch: Any) -> tuple[Carry, Measured]:
        old = carry.state
        loss, measured, new_rest, found = gradients(
            self._forward, old.params, old.rest, batch, self._accumulate
        )
        new_params, opt_leaves, updates = self._update(old, found, loss)
        average = self._averaged(old.average, new_params)
        new = State(new_params, new_rest, opt_leaves, average)

        number = carry.health.step + 1
        finite = all_finite((loss, updates))
        good = finite & (carry.health.bad_step == 0)
        first_bad = ~finite & (carry.health.bad_step == 0)
        kept = functools.partial(keep, good)
        # Not the optimizer's: nothing reads it after a bad step, and XLA computes it in place
        # only where nothing waits for the verdict (on a CPU that is half of a small step).
        state = jax.tree.map(kept, new, old)._replace(
            optimizer=jax.tree.map(as_before, new.optimizer, old.optimizer)
        )
        window = carry.window.add(jax.tree.map(lambda x: kept(x, jnp.zeros_like(x)), measured))
        health = Health(
            number,
            jnp.where(first_bad, number, carry.health.bad_step),
            jnp.where(first_bad, loss.astype(jnp.float32), carry.health.bad_loss),
        )
        return Carry(state, window, health), measured

    def _update(self, old: State, found: Leaves, loss: Array) -> tuple[Leaves, Leaves, Any]:
        nest = self.binding.params.nest
        tree = nest(old.params)
        opt_state = jax.tree.unflatten(self._opt_structure, old.optimizer)
        # Strict promotion is the user's choice for their code; optax isn't written to it.
        with jax.numpy_dtype_promotion("standard"), jax.named_scope("optimizer"):
            updates, opt_state = self._optimizer.update(nest(found), opt_state, tree, value=loss)
            new = self.binding.params.unnest(optax.apply_updates(tree, updates))
        return new, tuple(jax.tree.leaves(opt_state)), updates

    def _averaged(self, old: Leaves, params: Leaves) -> Leaves:
        decay = self._average
        if decay is None:
            return ()
        return tuple(decay * a + (1 - decay) * p for a, p in zip(old, params, strict=True))


def _own_tree(tree: Any) -> Any:
    return jax.tree.map(own, tree)


def check_model_and_optimizer(model: Any, optimizer: Any) -> None:
    """Raise where a type checker would have complained."""
    if not isinstance(model, nnx.Module):
        raise InputError(f"model must be an nnx.Module, got {type(model).__name__}")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(
            f"optimizer must be an optax transformation such as optax.adam(1e-3), got "
            f"{type(optimizer).__name__}"
        )
