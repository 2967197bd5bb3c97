"""The commands on pictures: finetune, predict, evaluate."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jgraph._cli._parser import Parser, add_run_folder, number, whole
from jgraph._errors import InputError
from jgraph._suggest import did_you_mean_path
from jgraph._unfinished import unfinished_beside

if TYPE_CHECKING:
    from jgraph._finetune import Prediction, Run

FINETUNE = """\
  jgraph finetune
  jgraph finetune pictures/
  jgraph finetune pictures/ --unfreeze last:2 --epochs 5
  jgraph finetune pictures/ --out my-classifier --seed 1
  jgraph finetune --resume runs/pictures-001"""
PREDICT = """\
  jgraph predict runs/latest photo.jpg
  jgraph predict runs/latest photos/ --top 3
  jgraph predict runs/latest photos/ --csv predictions.csv
  jgraph predict runs/latest a.jpg b.jpg --json"""
EVALUATE = """\
  jgraph evaluate runs/latest pictures/test
  jgraph evaluate runs/latest pictures/test --json"""


def add_finetune(commands: Any) -> Parser:
    parser = commands.add_parser(
        "finetune",
        examples=FINETUNE,
        help="make a classifier from a folder of pictures",
        description="Make a picture classifier from a pretrained network and a folder of pictures.",
    )
    add = parser.add_argument
    add(
        "data",
        nargs="?",
        metavar="DATA",
        help="CLASS/NAME.jpg, or train/ with val/ and test/ holding those; left out: demo pictures",
    )
    add(
        "--backbone",
        default="efficientnet_lite0",
        metavar="NAME",
        help="pretrained network, or the handle of a module (default: %(default)s)",
    )
    add(
        "--unfreeze",
        default="none",
        metavar="none|all|last:N",
        help="stages trained with the head (default: %(default)s)",
    )
    add(
        "--epochs",
        type=whole,
        default=5,
        metavar="N",
        help="passes over the data while unfrozen (default: %(default)s)",
    )
    _add_batch_size(parser)
    add(
        "--strategy",
        default="one",
        metavar="one|auto|data_parallel|fsdp|pmap",
        help="where the network runs: one device, or all of them (default: %(default)s)",
    )
    add(
        "--learning-rate",
        type=number,
        default=1e-3,
        metavar="X",
        help="peak rate of the head while unfrozen; the backbone has a tenth (default: 0.001)",
    )
    add("--image-size", type=whole, metavar="PX", help="side the network sees; left out: its own")
    add("--seed", type=whole, default=0, metavar="N", help="of every draw (default: %(default)s)")
    add("--out", metavar="RUN", help="folder to write; left out: runs/NAME-001, -002, …")
    add(
        "--cache",
        default="on",
        metavar="on|off|FOLDER",
        help="whether, or where, features are kept for the next run (default: %(default)s)",
    )
    add("--resume", metavar="RUN", help="go on with a run that was stopped; all else is as it was")
    _add_on_bad_picture(parser)
    parser.set_defaults(run=_finetune)
    return parser


def add_predict(commands: Any) -> Parser:
    parser = commands.add_parser(
        "predict",
        examples=PREDICT,
        help="classify pictures with a run",
        description="Classify pictures. Files that are no pictures are named, the rest goes on.",
    )
    add = parser.add_argument
    add_run_folder(parser)
    add("pictures", nargs="+", metavar="PICTURE|FOLDER", help="files, and folders of files")
    add("--top", type=whole, default=5, metavar="K", help="classes per picture (default: 5)")
    add("--json", action="store_true", help="print JSON")
    add("--csv", metavar="FILE", help="write picture, rank, label, probability to FILE")
    _add_batch_size(parser)
    parser.set_defaults(run=_predict)
    return parser


def add_evaluate(commands: Any) -> Parser:
    parser = commands.add_parser(
        "evaluate",
        examples=EVALUATE,
        help="measure a run on pictures",
        description="Measure a run on a folder of pictures of its classes.",
    )
    add = parser.add_argument
    add_run_folder(parser)
    add("data", metavar="DATA", help="CLASS/NAME.jpg with the run's classes")
    add("--json", action="store_true", help="print JSON")
    _add_on_bad_picture(parser)
    _add_batch_size(parser)
    parser.set_defaults(run=_evaluate)
    return parser


def _add_batch_size(parser: Parser) -> None:
    parser.add_argument(
        "--batch-size",
        type=whole,
        default=32,
        metavar="N",
        help="pictures per step (default: %(default)s)",
    )


def _add_on_bad_picture(parser: Parser) -> None:
    parser.add_argument(
        "--on-bad-picture",
        choices=("skip", "stop"),
        default="skip",
        help="what to do with a file that can't be read (default: %(default)s)",
    )


def _finetune(args: argparse.Namespace) -> int:
    from jgraph._cache import enable_compilation_cache
    from jgraph._finetune import finetune

    enable_compilation_cache()
    finetune(
        args.data,
        backbone=args.backbone,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        image_size=args.image_size,
        unfreeze=args.unfreeze,
        seed=args.seed,
        strategy=args.strategy,
        out=args.out,
        on_bad_picture=args.on_bad_picture,
        cache=args.cache == "on" if args.cache in ("on", "off") else args.cache,
        resume=args.resume,
    )
    return 0


def _load(args: argparse.Namespace) -> Run:
    from jgraph._cache import enable_compilation_cache
    from jgraph._finetune import load_run

    if args.batch_size < 1:
        raise InputError(f"batch size must be at least 1, got {args.batch_size}")
    enable_compilation_cache()
    return load_run(args.run_folder)


def _predict(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise InputError(f"top must be at least 1, got {args.top}")
    table = Path(args.csv).expanduser() if args.csv else None
    if table is not None:
        _check_table(table)
    run = _load(args)
    predictions = run.predict(args.pictures, batch_size=args.batch_size, on_bad_picture="skip")
    _name_skipped(run)
    if not predictions:
        raise InputError(f"none of the {len(run.skipped)} files could be read as a picture")
    if table is not None:
        _write_csv(table, predictions, args.top)
    if args.json:
        rows = [
            {
                "picture": p.source,
                "label": p.label,
                "probability": p.probability,
                "top": [{"label": name, "probability": x} for name, x in p.top(args.top)],
            }
            for p in predictions
        ]
        print(json.dumps({"predictions": rows, "skipped": run.skipped}, indent=1))
    elif table is None:
        for p in predictions:
            print(f"{p.source}: " + ", ".join(f"{name} {x:.3f}" for name, x in p.top(args.top)))
    else:
        print(f"{table}: predictions of {len(predictions)} pictures")
    return 0


def _check_table(path: Path) -> None:
    """Refuse a file that can't be written before the work, not after it."""
    if path.is_dir():
        raise InputError(f"--csv must name a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise InputError(
            f"--csv must name a file in a folder that exists, and {path.parent} doesn't"
            f"{did_you_mean_path(path.parent)}"
        )


def _write_csv(path: Path, predictions: Sequence[Prediction], top: int) -> None:
    """Write the table; an earlier one is replaced by a whole one or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("picture", "rank", "label", "probability"))
    for p in predictions:
        for rank, (name, probability) in enumerate(p.top(top), 1):
            writer.writerow((p.source, rank, name, f"{probability:.6f}"))
    table = text.getvalue().encode("utf-8", "backslashreplace")
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(table)  # a pipe or a device can't be replaced
        return
    with unfinished_beside(path) as unfinished:
        unfinished.write_bytes(table)
        unfinished.replace(path)


def _evaluate(args: argparse.Namespace) -> int:
    run = _load(args)
    score = run.evaluate(args.data, batch_size=args.batch_size, on_bad_picture=args.on_bad_picture)
    _name_skipped(run)
    if score.trained_on:
        print(
            f"jgraph: {score.trained_on} of these {score.count} pictures trained the run, so the "
            "accuracy is too good; measure on others",
            file=sys.stderr,
        )
    if args.json:
        print(json.dumps({**score.to_json(), "skipped": run.skipped}, indent=1))
        return 0
    print(f"Accuracy ({score.name}): {score}")
    print(f"  always the most frequent class: {score.baseline:.3f}")
    for name, recall in score.recall.items():
        print(f"  recall of {name}: {'no pictures' if recall is None else f'{recall:.3f}'}")
    return 0


def _name_skipped(run: Run) -> None:
    for reason in run.skipped.values():
        print(f"jgraph: left out: {reason}", file=sys.stderr)
