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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

import jgraph as jg

LOG_EVERY, EVALS = 10, 4  # steps per row of the log, evaluations per run
PROMPT = 32  # bytes of the held-out text that the sample goes on from


def loss_fn(model: jg.models.GPT, batch: dict[str, Any]) -> jax.Array:
    """Return the loss of every token, in nats, [B, T]."""
    tokens = batch["tokens"]
    return jg.losses.sparse_softmax_cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


def train(args: argparse.Namespace) -> None:
    """Train, then print and write what came of it."""
    config = jg.models.GPTConfig(256, args.context, args.width, args.depth, args.heads)
    strategy = jg.distribute.create(args.strategy)
    sources = [Path(part.__path__[0]) for part in (jg, jg.losses, jg.models)]
    text = jg.data.read_text(args.text or sources)
    cut = len(text) * 9 // 10
    training = jg.data.Windows(text[:cut], args.context, args.batch_size, shuffle=True)
    held_out = jg.data.Windows(text[cut:], args.context, args.batch_size)
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
        jg.train.adamw(args.learning_rate, args.steps, weight_decay=0.1, end=0.1, b2=0.95),
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
    jg.enable_compilation_cache()
    sys.exit(main())
