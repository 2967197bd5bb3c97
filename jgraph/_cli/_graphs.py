"""The commands on graphs: draw, inspect."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jgraph._cli._parser import Parser, add_run_folder, whole
from jgraph._errors import InputError
from jgraph._suggest import did_you_mean_path

if TYPE_CHECKING:
    from jgraph._finetune import Run

DRAW = """\
  jgraph draw runs/latest                    network.html: parts open and close
  jgraph draw runs/latest network.svg        a still picture, for a paper or a README"""
INSPECT = """\
  jgraph inspect runs/latest
  jgraph inspect runs/latest --depth 1"""

_UNITS = ("bytes", "kB", "MB", "GB")


def add_draw(commands: Any) -> Parser:
    """Add `jgraph draw`."""
    parser = commands.add_parser(
        "draw",
        examples=DRAW,
        help="draw a run's network",
        description="Draw the network of a run: its modules, shapes and what they cost.",
    )
    add_run_folder(parser)
    parser.add_argument(
        "picture",
        nargs="?",
        default="network.html",
        metavar="FILE",
        help="FILE.html or FILE.svg (default: %(default)s)",
    )
    parser.set_defaults(run=_draw)
    return parser


def add_inspect(commands: Any) -> Parser:
    """Add `jgraph inspect`."""
    parser = commands.add_parser(
        "inspect",
        examples=INSPECT,
        help="say what a run holds",
        description="Say what a run holds and what its network costs, part by part.",
    )
    add_run_folder(parser)
    parser.add_argument(
        "--depth", type=whole, default=2, metavar="N", help="levels of parts (default: %(default)s)"
    )
    parser.set_defaults(run=_inspect)
    return parser


def _draw(args: argparse.Namespace) -> int:
    picture = Path(args.picture).expanduser()
    if not picture.parent.is_dir():
        raise InputError(
            f"the picture's folder must exist, and {picture.parent} doesn't"
            f"{did_you_mean_path(picture.parent)}"
        )
    run = _load(args)
    run.graph().draw(picture, title=run.network)
    print(picture)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    if args.depth < 1:
        raise InputError(f"depth must be at least 1, got {args.depth}")
    import jax
    from flax import nnx

    run = _load(args)
    graph = run.graph()
    side = run.model.preprocessing.image_size
    weights = sum(x.nbytes for x in graph.state.values() if hasattr(x, "nbytes"))
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(run.model, nnx.Param)))
    rows = {
        "run": run.folder,
        "network": f"{run.network}, {parameters / 1e6:.2f} M parameters, {shown_size(weights)}",
        "classes": ", ".join(run.class_names),
        "picture": f"{side} x {side}, RGB",
        "accuracy": f"{run.metrics['accuracy']:.3f} of {run.metrics['count']} pictures",
        "memory": f"{shown_size(graph.memory.temporaries)} for one picture, beside the weights",
    }
    for name, value in rows.items():
        print(f"{name:10}{value}")
    print(f"\n{graph.text(depth=args.depth)}")
    return 0


def _load(args: argparse.Namespace) -> Run:
    from jgraph._cache import enable_compilation_cache
    from jgraph._finetune import load_run

    enable_compilation_cache()
    return load_run(args.run_folder)


def shown_size(count: float | int) -> str:
    """Return a number of bytes as people write it."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"
