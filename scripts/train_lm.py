"""Train a small GPT on text files, bytes as tokens: on a laptop, or on any number of GPUs or TPUs.

Nothing is downloaded. Needs an environment with jgraph, as scripts/test makes one:

    python scripts/train_lm.py                                 jgraph's own sources
    python scripts/train_lm.py book.txt notes/ --out runs/lm   files, and folders of them
    python scripts/train_lm.py book.txt --strategy fsdp --bfloat16 --batch-size 256
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from flax import nnx

import jgraph as jg

LOG_EVERY, EVALS = 10, 4  # steps per row of the log, evaluations per run
PROMPT = 32  # bytes of the held-out text that the sample goes on from


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Batches of windows of a text, `tokens` int32 [B, T + 1], as many as fit side by side.

    Rows beyond the last window are copies of others with `weight` 0.

    Args:
        text: bytes, uint8.
        length: T, the tokens of a window that are predicted.
        batch_size: B.
        shuffle: take windows anywhere, drawn anew for every epoch; otherwise side by side.
    """

    text: np.ndarray
    length: int
    batch_size: int
    shuffle: bool = False

    def __post_init__(self) -> None:
        if not self.batch_size >= 1:
            raise jg.InputError(f"--batch-size must be at least 1, got {self.batch_size}")
        if not 1 <= self.length < len(self.text):
            raise jg.InputError(
                f"--context must be from 1 to less than the text to train or evaluate on, "
                f"{len(self.text)} bytes; got {self.length}"
            )

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of an epoch, which its number decides."""
        starts = np.arange(0, len(self.text) - self.length, self.length)
        if self.shuffle:
            rng = np.random.default_rng(number)
            starts = rng.integers(len(self.text) - self.length, size=len(starts))
        for first in range(0, len(starts), self.batch_size):
            some = starts[first : first + self.batch_size]
            rows = np.resize(some, self.batch_size)
            tokens = self.text[rows[:, None] + np.arange(self.length + 1)].astype(np.int32)
            is_new = np.arange(self.batch_size) < len(some)
            yield {"tokens": tokens, "weight": is_new.astype(np.float32)}


def loss_fn(model: jg.models.GPT, batch: dict[str, Any]) -> jax.Array:
    """Return the loss of every token, in nats, [B, T]."""
    tokens = batch["tokens"]
    return jg.losses.sparse_softmax_cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


def make_optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Return AdamW that clips, warms up, cools down, and decays matrices only."""
    warm_up = max(1, steps // 10)
    first = rate / (warm_up + 1)  # not 0, at which a run of one step would learn nothing
    schedule = optax.warmup_cosine_decay_schedule(first, rate, warm_up, steps + 1, rate / 10)

    def is_matrix(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    adamw = optax.adamw(schedule, b2=0.95, weight_decay=0.1, mask=is_matrix)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def read_text(paths: Sequence[Path]) -> np.ndarray:
    """Return the bytes of files, and of the text files in folders, hidden ones left out."""
    found: dict[Path, bytes] = {}
    for path in paths:
        if not path.exists():
            raise jg.InputError(f"TEXT must be files or folders, there is nothing at {path}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file == path or (file.is_file() and not hidden and is_text(file.read_bytes())):
                found[file.resolve()] = file.read_bytes()
    return np.frombuffer(b"\n".join(found.values()), np.uint8)


def is_text(data: bytes) -> bool:
    """Return whether bytes are UTF-8 text."""
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def train(args: argparse.Namespace) -> None:
    """Train, then print and write what came of it."""
    config = jg.models.GPTConfig(256, args.context, args.width, args.depth, args.heads)
    strategy = jg.distribute.create(args.strategy)
    sources = [Path(part.__path__[0]) for part in (jg, jg.losses, jg.models)]
    text = read_text(args.text or sources)
    cut = len(text) * 9 // 10
    training = Windows(text[:cut], args.context, args.batch_size, shuffle=True)
    held_out = Windows(text[cut:], args.context, args.batch_size)
    print(f"{cut} bytes to train on, {len(text) - cut} held out, {strategy}", flush=True)

    model = jg.models.GPT(config, rngs=nnx.Rngs(args.seed))
    callbacks: list[jg.train.Callback] = [jg.train.ProgressBar()]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        callbacks.append(jg.train.CSVLog(args.out / "log.csv"))
    # Nothing may be due in the middle of a call.
    log_every = math.lcm(LOG_EVERY, max(1, args.steps_per_call))
    eval_every = log_every * max(1, math.ceil(args.steps / log_every / EVALS))
    spec = jg.TrainSpec(training, args.steps, log_every, args.accumulate, args.steps_per_call)
    result = jg.train_and_evaluate(
        model,
        loss_fn,
        make_optimizer(args.learning_rate, args.steps),
        train=spec,
        evals={"val": jg.EvalSpec(held_out, eval_every)},
        strategy=strategy,
        compute_dtype=jnp.bfloat16 if args.bfloat16 else None,
        callbacks=callbacks,
    )
    bits = result.rows("val")[-1]["loss"] / math.log(2)
    print(f"held out: {bits:.3f} bits per byte after {result.steps} steps")
    if args.out:
        # jg.models.GPT(GPTConfig(**config)), then jg.models.set_weights, has it back.
        (args.out / "config.json").write_text(json.dumps(dataclasses.asdict(config)) + "\n")
        weights = {k: np.array(v, order="C") for k, v in jg.models.weights_of(model).items()}
        (args.out / "weights.safetensors").write_bytes(safetensors.numpy.save(weights))
    if args.sample > 0:
        start = text[None, cut : cut + PROMPT]
        added = np.asarray(model.generate(start, args.sample, temperature=0.8, seed=args.seed))
        print(np.append(start, added).astype(np.uint8).tobytes().decode(errors="replace"))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="train_lm",
        usage="%(prog)s [TEXT ...] [--steps N] [--strategy NAME] [...] (--help tells all)",
        description="Train a small GPT on text files, bytes as tokens.",
    )
    add = parser.add_argument

    def value(name: str, kind: type, default: Any, help: str) -> None:
        add(name, type=kind, default=default, metavar="X", help=f"{help} (default: {default})")

    add("text", nargs="*", type=Path, metavar="TEXT", help="files, folders; else jgraph's sources")
    add("--out", type=Path, metavar="DIR", help="for log.csv, config.json, weights.safetensors")
    add("--bfloat16", action="store_true", help="compute in bfloat16; weights stay float32")
    add("--debug", action="store_true", help="run op by op, so that breakpoints stop")
    value("--strategy", str, "auto", f"where: {', '.join(jg.distribute.names())}")
    value("--steps", int, 200, "optimizer steps")
    value("--batch-size", int, 16, "sequences per step, over all devices")
    value("--context", int, 128, "bytes the model sees at once")
    value("--width", int, 128, "length of a byte's features")
    value("--depth", int, 4, "number of blocks")
    value("--heads", int, 4, "attention heads of a block")
    value("--learning-rate", float, 2e-3, "at its peak")
    value("--accumulate", int, 1, "parts a batch is cut into, to need less memory")
    value("--steps-per-call", int, 1, "steps the devices take on their own")
    value("--sample", int, 200, "bytes to make up at the end")
    value("--seed", int, 0, "of the first weights and the sample")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 with one sentence about input that can't be used."""
    args = parse(argv)
    try:
        with jg.debug_mode() if args.debug else contextlib.nullcontext():
            train(args)
    except (jg.InputError, OSError) as error:
        print(f"train_lm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
