"""A method of a network over all pictures, batch by batch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jgraph._eager import jit_is_off
from jgraph.data import Batch, Pictures
from jgraph.distribute import Strategy
from jgraph.graph import function
from jgraph.models import Classifier

Method = Callable[[Classifier, Array], Array]

# Each batch under way holds its activations, 30 MB a picture of 224 px.
_MOST_PICTURES = 128
# Of a program on a CPU: EfficientNet-Lite0 takes 0.74 of the time that a picture of 32 takes, since
# what one layer leaves for the next is still in the core's cache.
_CPU_PICTURES = 2


class Forward:
    """One method of a classifier as a compiled function of a batch of pictures.

    Args:
        model: its present weights are used; it isn't changed.
        method: called as `method(model, pictures)`, pictures uint8 `[B, S, S, 3]`.
        strategy: where it runs; None for where the model is.
    """

    def __init__(self, model: Classifier, method: Method, strategy: Strategy | None = None) -> None:
        # A twin: it holds the present weights, whatever becomes of the model's.
        self._model = nnx.merge(*nnx.split(model))
        self._strategy = strategy
        if strategy is not None:
            strategy.put(self._model)

        def forward(model: Classifier, pictures: Array) -> Array:
            return method(model, pictures)

        self._forward = function(forward, strategy=strategy)

    def __call__(
        self,
        pictures: Pictures,
        on_rows: Callable[[np.ndarray, np.ndarray], object] = lambda index, rows: None,
    ) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
        """Return the method's rows for all N pictures, and which of them could be read.

        Args:
            pictures: the batches.
            on_rows: called after every batch with the positions of its pictures and their rows.

        Returns:
            float32 `[N, D]`, zero where a picture could not be read, and bool `[N]`.
        """
        rows: np.ndarray | None = None
        good = np.zeros(len(pictures.paths), bool)
        programs = self._programs(pictures.batch_size)
        with ThreadPoolExecutor(programs) as pool:
            waiting: deque[tuple[Batch, Future[np.ndarray]]] = deque()

            def collect() -> np.ndarray:
                batch, future = waiting.popleft()
                out = future.result()
                into = np.zeros((good.size, *out.shape[1:]), out.dtype) if rows is None else rows
                real = batch["weight"] > 0
                index = batch["index"][real]
                into[index], good[index] = out[real], True
                on_rows(index, out[real])
                return into

            for batch in pictures:
                waiting.append((batch, self._start(pool, batch["picture"])))
                # The first batch alone, so that the program is compiled once.
                if rows is None or len(waiting) > programs:
                    rows = collect()
            while waiting:
                rows = collect()
        assert rows is not None, "Pictures holds at least one batch"
        return rows, good

    def _start(self, pool: ThreadPoolExecutor, pictures: np.ndarray) -> Future[np.ndarray]:
        if not jit_is_off():
            return pool.submit(self._rows, pictures)
        # A debugger steps through one thread, and jit is off in this thread only.
        done: Future[np.ndarray] = Future()
        done.set_result(self._rows(pictures))
        return done

    def _rows(self, pictures: np.ndarray) -> np.ndarray:
        put = jnp.asarray if self._strategy is None else self._strategy.put_batch
        step = _CPU_PICTURES if self._is_on_one_cpu and not jit_is_off() else len(pictures)
        if len(pictures) % step:
            step = 1
        parts = (pictures[i : i + step] for i in range(0, len(pictures), step))
        return np.concatenate([np.asarray(self._forward(self._model, put(x))) for x in parts])

    def _programs(self, batch_size: int) -> int:
        """Return how many batches to run at once.

        XLA's CPU backend runs such a network's program on one core: two at once take the time of
        one. An accelerator has its own queue and gains nothing, nor do programs over all devices.
        """
        if not self._is_on_one_cpu:
            return 1
        return max(1, min(os.cpu_count() or 1, _MOST_PICTURES // batch_size))

    @property
    def _is_on_one_cpu(self) -> bool:
        is_split = self._strategy is not None and self._strategy.num_devices > 1
        return jax.default_backend() == "cpu" and not is_split
