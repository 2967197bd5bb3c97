"""The `jgraph` command."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from jgraph._cli._doctor import add_doctor
from jgraph._cli._graphs import add_draw, add_inspect
from jgraph._cli._hub import add_hub
from jgraph._cli._interrupt import interrupts_that_arrive
from jgraph._cli._launch import add_launch
from jgraph._cli._parser import Parser
from jgraph._cli._pictures import add_evaluate, add_finetune, add_predict
from jgraph._errors import InputError
from jgraph._suggest import did_you_mean
from jgraph._version import __version__

EXAMPLES = """\
  jgraph finetune                            the embedded demo pictures
  jgraph finetune pictures/                  your own: pictures/CLASS/NAME.jpg
  jgraph predict runs/latest photo.jpg       what is on the photo?
  jgraph evaluate runs/latest more/ --json   how good is it on other pictures?
  jgraph draw runs/latest network.html       what does its network look like?
  jgraph hub publish runs/latest pets.zip    one file that others can use and fine-tune
  jgraph launch --processes 2 train.py       one program as several processes
  jgraph doctor                              does jgraph work here?"""


# The disk is full, a quota is, or a file may not grow further.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes the process's own.

    Returns:
        The exit code: 0; 1 where `doctor` finds something broken; 2 with one sentence on standard
        error for input that can't be used; 130 after Ctrl-C.
    """
    # Names of files needn't be text, and a terminal needn't know every letter.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = _parse(sys.argv[1:] if argv is None else list(argv))
        with interrupts_that_arrive(), _debug_mode() if args.debug else nullcontext():
            code = args.run(args)
        # Now, where a reader that has gone is still met by the lines below.
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"jgraph: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as head, has seen enough; the interpreter must not flush into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        advice = "; make room, or write to another disk, and try again"
        print(
            f"jgraph: {error.strerror or error}{where}; nothing half-written is left, earlier "
            f"files are as they were{advice if error.errno in _NO_ROOM else ''}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as stop:
        left = str(stop) or "nothing half-written is left, earlier files are as they were"
        print(f"\njgraph: stopped; {left}", file=sys.stderr)
        return 130


def _debug_mode() -> AbstractContextManager[None]:
    from jgraph.debug import debug_mode  # not before it is asked for: it loads jax

    return debug_mode()


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="jgraph",
        examples=EXAMPLES,
        description="Fine-tune pretrained networks on your own pictures, and use the result.",
    )
    parser.add_argument("--version", action="version", version=f"jgraph {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", parser_class=Parser
    )
    made = {
        "finetune": add_finetune(commands),
        "predict": add_predict(commands),
        "evaluate": add_evaluate(commands),
        "draw": add_draw(commands),
        "inspect": add_inspect(commands),
        "hub": add_hub(commands),
    }
    for command in made.values():
        command.add_argument(
            "--debug", action="store_true", help="run op by op, so that breakpoints stop"
        )
    made["launch"] = add_launch(commands)
    made["doctor"] = add_doctor(commands)
    if not argv:
        parser.print_help()
        raise SystemExit(0)
    if not argv[0].startswith("-") and argv[0] not in made:
        raise InputError(
            f"the command must be one of {', '.join(made)}, got {argv[0]!r}"
            f"{did_you_mean(argv[0], made)}"
        )
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        owner = getattr(args, "parser", made.get(args.command, parser))
        name = unknown[0].split("=")[0]
        if name in owner.options and owner is not parser:
            raise InputError(f"{name} comes after the command: {owner.prog} {name} …")
        raise InputError(
            f"{owner.prog} doesn't take {unknown[0]!r}{did_you_mean(name, owner.options)} "
            f"(see {owner.prog} --help)"
        )
    if args.command is None:
        parser.error(f"name a command: {', '.join(made)}")
    return args
