"""Runs that are killed again and again, and end as if they hadn't been.

A training program with everything a state can hold is killed (SIGKILL) at random moments and
started again by the same command, six times a run; then it may end. Its curve and its final state,
the optimizer's included, are compared with those of a run that nobody killed, to the bit. Every
second kill waits for a save to begin and comes at a random moment of it; a kill counts as one
during a save where it left a checkpoint without its end. `--rounds` is the number of kills.

What must hold: every run is the same to the bit, and at least half of the kills are during a save.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KILLS_A_RUN = 6
STEPS, EVERY_STEPS = 1200, 60
_STARTED, _RESULT, _SAVES = "started", "result.json", "checkpoints"
_SAVE_SECONDS, _RUN_SECONDS = 0.04, 0.8  # about as long as a save takes, and a run, from a start
_PATIENCE = 120.0


@dataclasses.dataclass
class Kills:
    """What came of the kills: all of them, those during a save, and what differed at the end."""

    count: int = 0
    during_save: int = 0
    runs: int = 0
    different: list[str] = dataclasses.field(default_factory=list)


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    with tempfile.TemporaryDirectory() as place:
        found = kill_and_restart(Path(place), rounds, seed=0)
    yield (
        f"{found.count} kills in {found.runs} runs, {found.during_save} of them during a save: "
        f"{len(found.different)} runs differ from the one nobody killed"
    )
    yield from found.different
    if found.different or 2 * found.during_save < found.count:
        raise SystemExit(1)


def kill_and_restart(place: Path, kills: int, *, seed: int) -> Kills:
    """Kill runs so many times in all, and compare each with one that nobody killed.

    Args:
        place: an empty folder.
        kills: how many.
        seed: of the moments.
    """
    moments = random.Random(seed)
    _start(place, "whole").communicate(timeout=_PATIENCE)
    expected = _outcome(place / "whole")
    found = Kills()
    while found.count < kills:
        folder = place / f"run-{found.runs}"
        for _ in range(min(KILLS_A_RUN, kills - found.count)):
            in_save = _kill_once(place, folder, moments, in_save=found.count % 2 == 0)
            if in_save is None:
                break  # it had come to its end
            found.count += 1
            found.during_save += in_save
        _start(place, folder.name).communicate(timeout=_PATIENCE)
        found.runs += 1
        outcome = _outcome(folder)
        found.different += [f"{folder.name}: {k}" for k in expected if outcome[k] != expected[k]]
    return found


def _kill_once(place: Path, folder: Path, moments: random.Random, *, in_save: bool) -> bool | None:
    """Start a run and kill it; return whether that was during a save, None where it had ended."""
    (folder / _STARTED).unlink(missing_ok=True)
    since = time.time()
    process = _start(place, folder.name)
    _wait_until((folder / _STARTED).exists, process)
    time.sleep(moments.uniform(0, _RUN_SECONDS))
    if in_save:
        _wait_until(lambda: _is_saving(folder, since), process)
        time.sleep(moments.uniform(0, _SAVE_SECONDS))
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    return _is_saving(folder, since)


def _is_saving(folder: Path, since: float) -> bool:
    """Return whether a checkpoint has been begun since then, and not ended."""
    saves = folder / _SAVES
    for save in sorted(saves.iterdir()) if saves.is_dir() else []:
        with contextlib.suppress(FileNotFoundError):  # it has just been removed
            if save.stat().st_mtime > since and not (save / "manifest.json").exists():
                return True
    return False


def _wait_until(condition: Any, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition() and process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError("the run did nothing for two minutes")
        time.sleep(0.0005)


def _start(place: Path, name: str) -> subprocess.Popen[bytes]:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(place / "compiled"), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.kills", str(place / name)],
        env={**os.environ, **cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        cwd=Path(__file__).parents[1],
    )


def _outcome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _RESULT).read_text())


def train(folder: Path) -> None:
    """Train in a folder, from its newest checkpoint, and write down how it ended."""
    import jax
    import numpy as np
    import optax
    from flax import nnx

    import jgraph as jg

    class Network(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.first = nnx.Linear(16, 256, rngs=rngs)
            self.norm = nnx.BatchNorm(256, rngs=rngs)
            self.dropout = nnx.Dropout(0.3, rngs=rngs)
            self.second = nnx.Linear(256, 256, rngs=rngs)
            self.head = nnx.Linear(256, 4, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.dropout(self.norm(nnx.relu(self.first(x))))
            return self.head(nnx.relu(self.second(x)))

    class Shuffled:
        """Batches in another order each epoch."""

        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.x = rng.standard_normal((7, 32, 16)).astype(np.float32)
            self.y = rng.integers(0, 4, (7, 32), dtype=np.int32)

        def epoch(self, n: int) -> Iterator[dict[str, Any]]:
            for i in np.random.default_rng(n).permutation(7):
                yield {"x": self.x[i], "y": self.y[i]}

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return self.epoch(0)

    def loss_fn(model: Any, batch: Any) -> Any:
        logits = model(batch["x"])
        values = jg.losses.sparse_softmax_cross_entropy(logits, batch["y"])
        return values, {"accuracy": logits.argmax(-1) == batch["y"]}

    class Started(jg.train.Callback):
        def on_step(self, step: int) -> None:
            (folder / _STARTED).touch()

    folder.mkdir(exist_ok=True)
    rate = optax.cosine_decay_schedule(1e-2, STEPS)
    result = jg.train_and_evaluate(
        Network(),
        loss_fn,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate)),
        train=jg.TrainSpec(Shuffled(), STEPS, log_every=16),
        evals={"val": jg.EvalSpec(Shuffled(), every_steps=64)},
        average=0.99,
        best=("val/loss", "min"),
        checkpoint=jg.Checkpoint(folder / _SAVES, every_steps=EVERY_STEPS, keep=2),
        callbacks=[Started()],
    )
    last = jg.Checkpoint(folder / _SAVES).restore()
    assert last is not None
    digests = {k: hashlib.sha256(x.tobytes()).hexdigest() for k, x in sorted(last.arrays.items())}
    outcome = {"curve": result.history, "state": digests, "step": last.step}
    (folder / _RESULT).write_text(json.dumps(outcome))


if __name__ == "__main__":
    train(Path(sys.argv[1]))
