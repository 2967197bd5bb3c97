"""Train a network on a folder of pictures: on a laptop, or on any number of GPUs or TPUs.

For a classifier from few pictures `jgraph finetune` is quicker and does more; this is the training
loop to change. Needs an environment with jgraph, as scripts/test makes one:

    python scripts/train_images.py                          the embedded demo pictures
    python scripts/train_images.py pictures/ --out runs/a   pictures/CLASS/NAME.jpg
    python scripts/train_images.py pictures/ --weights none --strategy data_parallel --bfloat16
    python scripts/train_images.py pictures/ --freeze stem --freeze "blocks.[0-9]"
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

import jgraph as jg
from jgraph._cache import cache_folder

PATIENCE = 5  # epochs without a better accuracy before the run stops


def read_pictures(args: argparse.Namespace) -> jg.data.Splits:
    """Return the pictures to train on, those that decide what is kept, and those to test on."""
    folder = args.data or jg.data.write_demo(cache_folder() / jg.data.DEMO_NAME)
    found = jg.data.find_splits(folder)
    jg.data.check_trainable(found.train)
    if found.val is not None:
        return found
    train, val = jg.data.stratified_holdout(found.train.labels, seed=args.seed)
    if not len(val):
        raise jg.InputError(f"{folder} must have val/, or a class of three pictures or more")
    return jg.data.Splits(found.train.subset(train), found.train.subset(val), found.test)


def make_loss_fn(preprocessing: Any) -> Callable[..., Any]:
    """Return the loss function of a network that wants its pictures so."""

    def loss_fn(model: nnx.Module, batch: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = model(preprocessing.normalize(batch["picture"]))
        values = jg.losses.sparse_softmax_cross_entropy(logits, batch["label"])
        return values, {"accuracy": jg.losses.accuracy(logits, batch["label"])}

    return loss_fn


def train(args: argparse.Namespace) -> None:
    """Train, then print and write what came of it."""
    if args.seed < 0:
        raise jg.InputError(f"--seed must be 0 or above, got {args.seed}")
    strategy = jg.distribute.create(args.strategy)
    splits = read_pictures(args)
    class_names = splits.train.class_names
    model = jg.models.create(
        args.model,
        num_classes=len(class_names),
        weights=None if args.weights == "none" else args.weights,
        rngs=nnx.Rngs(args.seed),
    )
    preprocessing = model.preprocessing
    if args.image_size is not None:
        preprocessing = preprocessing.at(args.image_size)

    def batches(pictures: jg.data.PictureSet, **options: Any) -> jg.data.Pictures:
        size = min(args.batch_size, len(pictures))
        return jg.data.Pictures(pictures.paths, pictures.labels, preprocessing, size, **options)

    training = batches(splits.train, shuffle=True, augment=True, seed=args.seed)
    assert splits.val is not None, "read_pictures sees to it"
    print(
        f"{len(splits.train)} pictures to train on, {len(class_names)} classes, {strategy}",
        flush=True,
    )
    callbacks: list[jg.train.Callback] = [
        jg.train.ProgressBar(),
        jg.train.EarlyStopping("val/accuracy", "max", patience=PATIENCE),
    ]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        callbacks.append(jg.train.CSVLog(args.out / "log.csv"))
    loss_fn = make_loss_fn(preprocessing)
    spec = jg.TrainSpec(training, args.steps, log_every=len(training))
    compute_dtype = jnp.bfloat16 if args.bfloat16 else None
    model.train()
    result = jg.train_and_evaluate(
        model,
        loss_fn,
        jg.train.adamw(args.learning_rate, args.steps),
        train=spec,
        evals={"val": jg.EvalSpec(batches(splits.val), every_steps=len(training))},
        strategy=strategy,
        freeze=args.freeze,
        best=("val/accuracy", "max"),
        compute_dtype=compute_dtype,
        callbacks=callbacks,
    )
    best = result.best("val/accuracy", "max")
    nnx.update(model, result.states["best"])
    print(f"val: accuracy {best['accuracy']:.3f}, the best, after {best['step']} steps")
    if splits.test is not None:
        test = batches(splits.test)
        found = jg.evaluate(model, loss_fn, test, strategy=strategy, compute_dtype=compute_dtype)
        print(f"test: accuracy {found['accuracy']:.3f} of {len(splits.test)} pictures")
    if args.out:
        # jg.models.create(network, num_classes=…), then jg.models.set_weights, has it back.
        config = {"network": args.model, "class_names": class_names}
        config["preprocessing"] = preprocessing.to_json()
        (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        weights = {k: np.array(v, order="C") for k, v in jg.models.weights_of(model).items()}
        (args.out / "weights.safetensors").write_bytes(safetensors.numpy.save(weights))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="train_images",
        usage="%(prog)s [DATA] [--steps N] [--strategy NAME] [...] (--help tells all)",
        description="Train a network on a folder of pictures.",
    )
    add = parser.add_argument

    def value(name: str, kind: type, default: Any, help: str) -> None:
        add(name, type=kind, default=default, metavar="X", help=f"{help} (default: {default})")

    add("data", nargs="?", metavar="DATA", help="CLASS/NAME.jpg, or train/ with val/ and test/")
    add("--out", type=Path, metavar="DIR", help="for log.csv, config.json, weights.safetensors")
    add("--bfloat16", action="store_true", help="compute in bfloat16; weights stay float32")
    add("--debug", action="store_true", help="run op by op, so that breakpoints stop")
    add("--freeze", action="append", default=[], metavar="GLOB", help="parts that stay as they are")
    add("--image-size", type=int, metavar="PX", help="side the network sees; left out: its own")
    value("--strategy", str, "auto", f"where: {', '.join(jg.distribute.names())}")
    value("--model", str, "efficientnet_lite0", f"one of {', '.join(jg.models.names())}")
    value("--weights", str, "pretrained", "a file, pretrained, or none to start anew")
    value("--steps", int, 100, "optimizer steps at most")
    value("--batch-size", int, 32, "pictures per step, over all devices")
    value("--learning-rate", float, 1e-3, "at its peak")
    value("--seed", int, 0, "of every draw")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 with one sentence about input that can't be used."""
    args = parse(argv)
    try:
        with jg.debug_mode() if args.debug else contextlib.nullcontext():
            train(args)
    except (jg.InputError, OSError) as error:
        print(f"train_images: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    jg.enable_compilation_cache()
    sys.exit(main())
