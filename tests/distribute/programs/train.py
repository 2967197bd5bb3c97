"""Trains on all processes; process 1 fails after step 5 in the way that it is told.

train.py STRATEGY FOLDER STEPS [raise|exit|kill|term]; process 0 writes FOLDER/result-COUNT.json
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jgraph as jg

jg.distribute.initialize()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

strategy_name, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
failure = sys.argv[4] if len(sys.argv) > 4 else None


class Fails(jg.train.Callback):
    def on_step(self, step):
        if failure:
            time.sleep(0.05)
        if step != 5 or jax.process_index() != 1:
            return
        (folder / "failed").write_text(str(time.time()))
        if failure == "raise":
            raise RuntimeError("a bug of one process")
        if failure == "exit":
            sys.exit(3)
        if failure == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if failure == "term":
            os.kill(os.getpid(), signal.SIGTERM)


class Network(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(self.norm(nnx.relu(self.first(x)))))


def loss_fn(model, batch):
    logits = model(batch["x"])
    values = jg.losses.sparse_softmax_cross_entropy(logits, batch["y"])
    return values, {"accuracy": logits.argmax(-1) == batch["y"]}


rng = np.random.default_rng(0)
data = [
    {
        "x": rng.standard_normal((rows, 3)).astype(np.float32),
        "y": rng.integers(0, 4, rows, dtype=np.int32),
    }
    for rows in (16, 16, 16, 13)  # the last one isn't divided
]
strategies = {
    "data_parallel": jg.distribute.DataParallel,
    "fsdp": lambda: jg.distribute.FSDP(min_size=8),
    "one": jg.distribute.OneDevice,
}
folder.mkdir(exist_ok=True)
result = jg.train_and_evaluate(
    Network(),
    loss_fn,
    optax.sgd(0.1, momentum=0.9),
    train=jg.TrainSpec(data, steps, log_every=2),
    evals={"val": jg.EvalSpec(data, every_steps=6)},
    strategy=strategies[strategy_name](),
    average=0.9,
    checkpoint=jg.Checkpoint(folder / "checkpoints", every_steps=4),
    callbacks=[Fails()] if failure else [],
)
if jax.process_index() == 0:
    name = f"result-{jax.process_count()}.json"
    (folder / name).write_text(json.dumps(result.history))
