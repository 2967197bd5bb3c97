"""`jax.pmap`: one copy of the program per device, each with its part of the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jgraph._errors import InputError
from jgraph._replicas import replica_key, replicas
from jgraph.distribute._strategy import DATA, Strategy, first_devices
from jgraph.distribute._varying import varying_outputs
from jgraph.graph import Body, Output


class Pmap(Strategy):
    """One copy of the program per device under `jax.pmap`, each with its part of the batch.

    `jgraph.train_and_evaluate`, `jgraph.train.value_and_grad` and `Mean.value()` add up what the
    replicas have; BatchNorm normalises over all of them; each replica's dropout draws other masks.
    Every array of a split batch must have the examples as its first axis. A batch that the devices
    don't divide is run whole on each of them. A program whose new state would differ between the
    replicas is refused, with the path of what differs.

    What a program computes between the examples of a batch by other means (a mean within the loss,
    a sort) is over one replica's part of it; where that matters, `DataParallel` is the strategy.
    Random keys, in `nnx.Rngs` or as typed keys among the arguments, are folded with the replica's
    number.

    Args:
        n: how many devices; None takes all.

    Raises:
        InputError: there are fewer devices, or they are of several processes, or (when a step is
            traced) a batch's arrays have different numbers of examples, the new state would differ
            between replicas, or so would a result that has no axis of examples.

    Source:
        `jax.pmap`; `tf.distribute.MirroredStrategy`.
    """

    def __init__(self, n: int | None = None) -> None:
        devices = first_devices(n)
        if len({device.process_index for device in devices}) > 1:
            raise InputError(
                "Pmap must have the devices of one process, got those of "
                f"{jax.process_count()}; DataParallel runs on all of them"
            )
        super().__init__(devices)

    def put_batch(self, batch: Any) -> Any:
        """Place one batch: all its arrays are split along their first axis, or none is."""
        self._check_rows(batch, 0)
        return super().put_batch(batch)

    def put_batches(self, batches: Any) -> Any:
        """Place several batches stacked along a new first axis: each is split as `put_batch`."""
        self._check_rows(batches, 1)
        return super().put_batches(batches)

    def splits(self, arrays: Sequence[Any]) -> tuple[int | None, ...]:
        """Return the axis along which each array was split by `put_batch`."""
        return tuple(map(self._split_axis, arrays))

    def run(
        self,
        body: Body,
        state: list[Any],
        arrays: list[Any],
        splits: tuple[int | None, ...],
        outputs: Callable[[], Sequence[Output]],
    ) -> list[Any]:
        """Run a function once per device; see `jgraph.graph.Strategy`."""
        if not any(axis is not None for axis in splits):
            return body(*state, *arrays)  # all of it on each device: there is nothing to add up
        parts = [self._part(x, axis) for x, axis in zip(arrays, splits, strict=True)]

        @functools.wraps(body)
        def replica(*flat: Any) -> list[Any]:
            with replicas(DATA):
                return body(*map(_of_replica, flat, is_split))

        is_split = [False] * len(state) + [axis is not None for axis in splits]
        # Types without a mesh: within pmap there is another one.
        shapes = [_shape(x, axis) for x, axis in zip(parts, splits, strict=True)]
        of_state = [_shape(x, None) for x in state]
        traced = jax.make_jaxpr(replica, axis_env=[(DATA, self.num_devices)])(*of_state, *shapes)
        merged = varying_outputs(traced.jaxpr, DATA, is_split)
        if any(merged):
            types = [*of_state, *(_shape(x, None) for x in arrays)]
            whole = jax.make_jaxpr(body, axis_env=[(DATA, self.num_devices)])(*types).out_avals
            _check_outputs(outputs(), traced.out_avals, merged, whole, self.num_devices)

        def mapped(state: list[Any], parts: list[Any]) -> list[Any]:
            return jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *state, *parts)

        found = jax.pmap(
            mapped,
            axis_name=DATA,
            in_axes=([None] * len(state), list(splits)),
            out_axes=[0 if merge else None for merge in merged],
            devices=list(self.mesh.devices.flat),
        )(state, parts)
        return [
            x.reshape(-1, *x.shape[2:]) if merge else x
            for x, merge in zip(found, merged, strict=True)
        ]

    def _part(self, x: Any, axis: int | None) -> Any:
        """Give an array an axis of replicas."""
        if axis is None:
            return x
        return x.reshape(*x.shape[:axis], self.num_devices, -1, *x.shape[axis + 1 :])

    def _split_axis(self, x: Any) -> int | None:
        sharding = None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh != self.mesh:
            return None
        spec = tuple(sharding.spec)
        return spec.index(DATA) if DATA in spec else None

    def _check_rows(self, batch: Any, axis: int) -> None:
        found = {
            f"batch{jax.tree_util.keystr(path)}": jnp.shape(x)
            for path, x in jax.tree.leaves_with_path(batch)
            if jnp.ndim(x) > axis
        }
        if len({shape[axis] for shape in found.values()}) > 1:
            shapes = ", ".join(f"{path} {shape}" for path, shape in found.items())
            raise InputError(
                "under Pmap every array of a batch must have one row per example, got "
                f"{shapes}; pass what isn't per example as an argument of its own, or use "
                "DataParallel"
            )


def _shape(x: Any, axis: int | None) -> jax.ShapeDtypeStruct:
    """Return the shape and type that one replica sees."""
    shape = x.shape if axis is None else (*x.shape[:axis], *x.shape[axis + 1 :])
    return jax.ShapeDtypeStruct(shape, x.dtype, weak_type=jax.typeof(x).weak_type)


def _of_replica(x: Any, is_split: bool) -> Any:
    """Give each replica random keys of its own; per-example keys are its own already."""
    return x if is_split else replica_key(x)


def _check_outputs(
    outputs: Sequence[Output],
    avals: Sequence[Any],
    varying: Sequence[bool],
    whole: Sequence[Any],
    replicas: int,
) -> None:
    """Raise where an output that differs between replicas isn't their rows, one after the other.

    Args:
        outputs: what the outputs are.
        avals: their types on one replica.
        varying: whether each differs.
        whole: their types for the whole batch.
        replicas: how many there are.

    Raises:
        InputError: it names the output.
    """
    for output, aval, differs, one in zip(outputs, avals, varying, whole, strict=True):
        if differs and output.is_state:
            raise InputError(
                f"under Pmap the state must stay the same on all replicas, but the new value of "
                f"{output.path} is made from one replica's part of the batch, or from its own "
                "random key; take gradients with jgraph.train.value_and_grad and reduce with "
                "jgraph.losses.mean(…).value(), or use DataParallel, under which any program is "
                "right"
            )
        rows = (replicas * aval.shape[0], *aval.shape[1:]) if aval.shape else None
        if differs and one.shape != rows:
            raise InputError(
                "under Pmap a result must be per example or the same on all replicas, but "
                f"{output.path} of shape {one.shape} is made from one replica's part of the "
                "batch; reduce it with jgraph.losses.mean(…).value()"
            )
