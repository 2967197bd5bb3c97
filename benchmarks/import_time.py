"""CPU seconds of imports in new processes, in turn: jgraph alone, its parts, and jax.

What must hold: `import jgraph` takes at most 0.15 s longer than `import jax`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks._fresh import seconds, spread

STATEMENTS = (
    "import jax",
    "import jgraph",
    "import jgraph; jgraph.function",
    "import jgraph; jgraph.models",
    "import jgraph; jgraph.train_and_evaluate",
    "import jgraph; jgraph.finetune",
    "from flax import nnx; import optax",
)


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    times: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for _ in range(rounds):
        for statement, found in times.items():
            found += seconds(f"import time; {statement}; print(time.process_time())")
    jax = statistics.median(times["import jax"])
    for statement, found in times.items():
        more = statistics.median(found) - jax
        yield f"{statement}: {spread(found)}, {more:+.2f} s beside import jax"
