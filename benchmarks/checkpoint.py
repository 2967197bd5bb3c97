"""What a checkpoint a minute costs a loop with steps of 100 ms.

Two seconds of steps, in which a checkpoint of 100 MB is saved and written to its end, beside two
seconds of steps without, in wall time and in turn. What the save adds, spread over a minute, is
its cost. The disk is that of the system's temporary folder.

What must hold: 2 % at one save a minute.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks._paired import Ratio, paired
from jgraph.train import Checkpoint

STEPS, STEP_SECONDS, A_MINUTE = 20, 0.1, 60.0
_ARRAYS, _SHAPE = 24, (1024, 1024)  # 4 MB each, as parameters and what Adam keeps for them
_SIDE = 512


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    state = {f"layer{i}": jnp.full(_SHAPE, float(i)) for i in range(_ARRAYS)}
    with tempfile.TemporaryDirectory() as place, Checkpoint(place, keep=1) as checkpoint:
        times = _times_for(STEP_SECONDS)
        x = jnp.full((_SIDE, _SIDE), 1e-3)
        blocked: list[float] = []
        saves = 0

        def steps() -> jax.Array:
            y = x
            for _ in range(STEPS):
                y = jax.block_until_ready(_work(y, times))
            return y

        def steps_and_save() -> jax.Array:
            nonlocal saves
            saves += 1
            start = time.perf_counter()
            checkpoint.save(saves, state=state, force=True)
            blocked.append(time.perf_counter() - start)
            y = steps()
            checkpoint.wait()
            return y

        ratio = paired(steps_and_save, steps, rounds, clock=time.perf_counter)
    size = sum(array.nbytes for array in state.values()) / 1e6
    yield f"{size:.0f} MB, {STEPS} steps with a save over {STEPS} steps without: {ratio}"
    yield f"the loop waits {1e3 * statistics.median(blocked):.0f} ms for the arrays to be copied"
    yield f"cost at one save a minute: {100 * cost(ratio):.2f} %"


def cost(ratio: Ratio) -> float:
    """Return what a save adds, as a part of a minute."""
    return (ratio.median - 1) * ratio.seconds[1] / A_MINUTE


def _times_for(seconds: float) -> int:
    """Return how often to multiply for a step of so many seconds."""
    x, times = jnp.full((_SIDE, _SIDE), 1e-3), 16
    jax.block_until_ready(_work(x, times))
    start = time.perf_counter()
    jax.block_until_ready(_work(x, times))
    return max(1, round(times * seconds / (time.perf_counter() - start)))


@jax.jit
def _work(x: jax.Array, times: int) -> jax.Array:
    return jax.lax.fori_loop(0, times, lambda _, y: jnp.tanh(x @ y), x)
