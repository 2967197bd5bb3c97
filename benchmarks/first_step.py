"""CPU seconds to the end of the first training step in new processes, compiled and from the cache.

EfficientNet-Lite0 at 96 px, batches of 16. What must hold: 5 s with the cache filled, where it took
24 without.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from benchmarks._fresh import seconds, spread

SCRIPT = """if True:
    import time
    import jax, jgraph as jg, numpy as np, optax
    jg.enable_compilation_cache()
    from flax import nnx

    def loss_fn(model, batch):
        return jg.losses.sparse_softmax_cross_entropy(model(batch["x"]), batch["y"])

    imported = time.process_time()
    model = jg.models.create("efficientnet_lite0", num_classes=3, rngs=nnx.Rngs(0))
    model.train()
    made = time.process_time()
    step = jg.train.make_step(model, loss_fn, optax.adam(1e-3))
    batch = {"x": np.zeros((16, 96, 96, 3), np.float32), "y": np.zeros(16, np.int32)}
    jax.block_until_ready(step(batch))
    end = time.process_time()
    print(imported, made - imported, end - made, end)
"""


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    cold, warm = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            variables = {"JGRAPH_CACHE": folder, "JAX_COMPILATION_CACHE_DIR": ""}
            cold.append(seconds(SCRIPT, variables))
            warm.append(seconds(SCRIPT, variables))
    for name, runs in (("compiled", cold), ("from the cache", warm)):
        parts = ("imports", "the network", "the first step", "in all")
        yield f"{name}: " + "; ".join(
            f"{part} {spread(list(times))}"
            for part, times in zip(parts, zip(*runs, strict=True), strict=True)
        )
