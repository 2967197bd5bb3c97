"""Fine-tuning a frozen EfficientNet-Lite0 at 224 px over ten epochs, from files, caches empty.

CPU seconds of all threads after the imports: the network, compilation, decoding, the head. jgraph
runs whole, in a new process, on COUNT pictures and on MANY: the difference is what one more
picture costs where there are many, for what a run costs however few there are is the same in both.
tf.keras and Keras on JAX train the head of the same frozen network in epochs of `fit`, fed by
tf.data. They take a first epoch, which compiles, and a few more, of COUNT pictures or fewer; ten
epochs are the first and nine times the median of the others, for as many pictures.

What must hold: 9 times tf.keras, 35 times Keras on JAX.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import _peer, _photographs
from benchmarks._fresh import seconds

COUNT, MANY, EPOCHS = 120, 480, 10
SCRIPT = """if True:
    import sys, time
    import jgraph as jg
    jg.finetune, jg.hub, jg.train
    jg.enable_compilation_cache()
    start = time.process_time()
    jg.finetune({folder!r}, out={out!r}, verbose=False)
    print(time.process_time() - start)
"""
PEERS = (
    # Name, backend, pictures: on JAX each takes a second.
    ("tf.keras and tf.data", "tensorflow", COUNT),
    ("Keras on JAX", "jax", 32),
)


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    with tempfile.TemporaryDirectory() as folder:
        ours = {}
        for count in (COUNT, MANY):
            files, labels = _photographs.write(Path(folder) / str(count), count)
            # Where nobody asked for a folder, the run takes one of its own: caches are empty.
            variables = {"JGRAPH_CACHE": f"{folder}/cache-{count}", "JAX_COMPILATION_CACHE_DIR": ""}
            script = SCRIPT.format(folder=f"{folder}/{count}", out=f"{folder}/run-{count}")
            (ours[count],) = seconds(script, variables)
            yield f"jgraph: {ours[count]:.1f} s for {count} pictures"
            if count == COUNT:
                (again,) = seconds(script.replace("run-", "again-"), variables)
                yield f"jgraph: {again:.1f} s for the same pictures again"
        each = (ours[MANY] - ours[COUNT]) / (MANY - COUNT)
        yield f"jgraph: {1e3 * each:.0f} ms for one more picture"
        files, labels = _photographs.write(Path(folder) / "peers", COUNT)
        for name, backend, count in PEERS:
            arguments = {"backend": backend, "files": files[:count], "labels": labels[:count]}
            with _peer.running("keras", "keras", **arguments) as peer:
                if peer is None:
                    yield f"{name}: not installed; benchmarks/setup, or {_peer.PYTHON_VARIABLE}"
                    continue
                first = peer.turn()
                later = statistics.median(peer.turn() for _ in range(max(1, min(rounds, 3))))
            more = EPOCHS * later / count
            whole = first + (EPOCHS - 1) * later
            yield (
                f"{name}: {more / each:.1f} times jgraph's CPU time for one more picture "
                f"({1e3 * more:.0f} ms in {EPOCHS} epochs)"
            )
            whole += (COUNT - count) * more
            yield f"{name}: {whole / ours[COUNT]:.1f} times jgraph's for {COUNT} pictures in all"
