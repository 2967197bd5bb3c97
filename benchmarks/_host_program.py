"""Trains on all processes; one of them fails after step 5 in the way that it is told.

Process 0 writes FOLDER/result-COUNT.json. The one that fails writes the time into FOLDER/failed.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import jgraph as jg

parser = argparse.ArgumentParser()
parser.add_argument("strategy", choices=("one", "data_parallel", "fsdp"))
parser.add_argument("folder", type=Path)
parser.add_argument("steps", type=int)
parser.add_argument("--fail", choices=("raise", "data", "exit", "kill", "stop", "term"))
parser.add_argument("--process", type=int, default=1, help="which one fails")
parser.add_argument("--hosts", type=int, help="how many have data of their own, up to 4")
parser.add_argument("--expect", type=int, help="how many processes there must be")
parser.add_argument("--heartbeat", type=int, default=30)
options = parser.parse_args()

jg.distribute.initialize(num_processes=options.expect, heartbeat_secs=options.heartbeat)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

fails = options.fail if jax.process_index() == options.process else None
signals = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


def fail():
    (options.folder / "failed").write_text(str(time.time()))
    if fails == "raise":
        raise RuntimeError("a bug of one process")
    if fails == "data":
        raise OSError("the data of one process can't be read")
    if fails == "exit":
        sys.exit(3)
    if fails in signals:
        os.kill(os.getpid(), signals[fails])


class Fails(jg.train.Callback):
    def on_step(self, step):
        time.sleep(0.05)
        if step == 5 and fails not in (None, "data"):
            fail()


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


def batches(sizes, seed):
    rng = np.random.default_rng(seed)
    return [
        {
            "x": rng.standard_normal((rows, 3)).astype(np.float32),
            "y": rng.integers(0, 4, rows, dtype=np.int32),
        }
        for rows in sizes
    ]


class Failing:
    """Data that can't be read in its tenth epoch, by when everything is compiled."""

    def __init__(self, data):
        self.data = data

    def epoch(self, number):
        for i, batch in enumerate(self.data):
            if number == 9 and i and fails == "data":
                fail()
            yield batch

    def __iter__(self):
        return self.epoch(0)


def own_data(hosts):
    """Return this process's batches; those of all, joined, where it runs alone."""
    rows = ((16, 16, 16, 13), (16, 16, 9), (), (16, 4, 16, 16, 16))[:hosts]
    data = [batches(sizes, seed) for seed, sizes in enumerate(rows)]
    if jax.process_count() > 1:
        return data[jax.process_index()]
    steps = [[host[i] for host in data if i < len(host)] for i in range(max(map(len, data)))]
    return [jax.tree.map(lambda *xs: np.concatenate(xs), *step) for step in steps]


# Of the same batches for all, the last one isn't divided.
data = own_data(options.hosts) if options.hosts else batches((16, 16, 16, 13), 0)
per_host = options.hosts is not None
strategies = {
    "data_parallel": jg.distribute.DataParallel,
    "fsdp": lambda: jg.distribute.FSDP(min_size=8),
    "one": jg.distribute.OneDevice,
}
options.folder.mkdir(exist_ok=True)
result = jg.train_and_evaluate(
    Network(),
    loss_fn,
    optax.sgd(0.1, momentum=0.9),
    train=jg.TrainSpec(Failing(data), options.steps, log_every=2, per_host=per_host),
    evals={"val": jg.EvalSpec(data, every_steps=6, per_host=per_host)},
    strategy=strategies[options.strategy](),
    average=0.9,
    checkpoint=jg.Checkpoint(options.folder / "checkpoints", every_steps=4),
    callbacks=[Fails()] if options.fail else [],
)
if jax.process_index() == 0:
    name = f"result-{jax.process_count()}.json"
    (options.folder / name).write_text(json.dumps(result.history))
