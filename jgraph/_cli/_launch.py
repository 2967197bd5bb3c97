"""`jgraph launch`: one program as several processes of this machine."""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from jgraph._cli._parser import Parser, whole
from jgraph._errors import InputError
from jgraph._suggest import did_you_mean_path

EXAMPLES = """\
  jgraph launch --processes 2 train.py
  jgraph launch --processes 4 train.py --steps 1000"""

_SAVED = 42  # a rank that was told to end, and has saved
_GRACE_SECONDS = 1.0  # for the others' last words, once one has failed
_SAVE_SECONDS = 120.0  # for all to save, once one was told to end
_TAIL = 200  # lines of a rank that are shown again
_POLL_SECONDS = 0.05
_LATE_SECONDS = 0.5  # at most, until the end of a process is seen
_PRINTING = threading.Lock()  # a line at a time, whichever process it comes from


def add_launch(commands: Any) -> Parser:
    """Add `jgraph launch`."""
    parser = commands.add_parser(
        "launch",
        examples=EXAMPLES,
        help="run a script as several processes of this machine",
        description="Run a script that calls jgraph.distribute.initialize() as several processes "
        "of this machine. Each line is shown with the number of its process. Where one fails, all "
        "are ended, and its traceback comes last. Ctrl-C and SIGTERM save, where the script has a "
        "checkpoint.",
    )
    parser.add_argument("--processes", type=whole, required=True, metavar="N", help="how many")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="…", help="what the script is given"
    )
    parser.set_defaults(run=_launch, debug=False)
    return parser


def _launch(args: argparse.Namespace) -> int:
    if args.processes < 1:
        raise InputError(f"processes must be at least 1, got {args.processes}")
    script = Path(args.script)
    if not script.is_file():
        raise InputError(f"there is no script {script}{did_you_mean_path(script)}")
    return launch([str(script), *args.arguments], args.processes)


def launch(command: list[str], processes: int) -> int:
    """Run a script as several processes, and wait for all.

    Args:
        command: the script and its arguments.
        processes: how many.

    Returns:
        0, or the exit code of the process that failed first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ranks = [_Rank(command, number, processes, address) for number in range(processes)]
    try:
        with _told_on(ranks):
            first = _wait(ranks)
    finally:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.read_to_the_end()
    if first is None:
        return 0
    if first.code == _SAVED:
        print("jgraph: all processes were told to end; start again to go on", file=sys.stderr)
        return _SAVED
    print(f"jgraph: process {first.number} failed {first.how}; its last words:", file=sys.stderr)
    print("\n".join(first.tail) or "(none)", file=sys.stderr, flush=True)
    return first.code


class _Rank:
    """One of the processes."""

    def __init__(self, command: list[str], number: int, count: int, address: str) -> None:
        self.number = number
        self.tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        places = {
            "JGRAPH_COORDINATOR": address,
            "JGRAPH_NUM_PROCESSES": str(count),
            "JGRAPH_PROCESS_ID": str(number),
            "PYTHONUNBUFFERED": "1",
        }
        self._left, pipe = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jgraph._cli._rank", str(pipe), *command],
            env={**os.environ, **places},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,  # Ctrl-C is for the launcher, which passes it on
            pass_fds=(pipe,),
        )
        os.close(pipe)
        os.set_blocking(self._left, False)
        self._readers = [
            threading.Thread(target=self._pass_on, args=pair, daemon=True)
            for pair in ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
        ]
        self.ended_at = float("inf")
        for thread in (*self._readers, threading.Thread(target=self._watch, daemon=True)):
            thread.start()

    @property
    def is_running(self) -> bool:
        return self.ended_at == float("inf")

    @property
    def code(self) -> int:
        """The exit code, as a shell would give it."""
        code = self._process.returncode
        return 128 - code if code < 0 else code

    @property
    def how(self) -> str:
        code = self._process.returncode
        if code < 0:
            return f"by {signal.Signals(-code).name}"
        return f"with exit code {code}"

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def read_to_the_end(self) -> None:
        for reader in self._readers:
            reader.join(_GRACE_SECONDS)

    def _watch(self) -> None:
        self._process.wait()
        seen = time.monotonic()
        said = b""
        with contextlib.suppress(BlockingIOError):  # a child of the process still holds the pipe
            said = os.read(self._left, 64)
        os.close(self._left)
        if said:
            self.ended_at = float(said)
        elif self._process.returncode in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS):
            self.ended_at = seen - _LATE_SECONDS  # nobody else's failure does that
        else:
            self.ended_at = seen

    def _pass_on(self, source: Any, to: Any) -> None:
        with source:
            for line in source:
                text = line.rstrip("\n")
                if to is sys.stderr:
                    self.tail.append(text)
                # Suppressed: nobody reads any more.
                with _PRINTING, contextlib.suppress(OSError, ValueError):
                    to.write(f"[{self.number}] {text}\n")
                    to.flush()


def _wait(ranks: list[_Rank]) -> _Rank | None:
    """Wait until all have ended; return the first that failed."""
    end = float("inf")
    while any(rank.is_running for rank in ranks) and time.monotonic() < end:
        if end == float("inf") and (failed := _first_failed(ranks)):
            end = time.monotonic() + (_SAVE_SECONDS if failed.code == _SAVED else _GRACE_SECONDS)
        time.sleep(_POLL_SECONDS)
    return _first_failed(ranks)


def _first_failed(ranks: list[_Rank]) -> _Rank | None:
    """Return the one that failed before those that it took along."""
    failed = [rank for rank in ranks if not rank.is_running and rank.code]
    return min(failed, key=lambda rank: rank.ended_at, default=None)


@contextlib.contextmanager
def _told_on(ranks: list[_Rank]) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the processes, after they have saved; at once the second time."""
    came: list[int] = []

    def tell(number: int, frame: FrameType | None) -> None:
        for rank in ranks if came else ranks[:1]:
            # JAX has all of them stop after the same step.
            rank.send(signal.SIGKILL if came else signal.SIGTERM)
        came.append(number)
        # Not print, which may be at work already.
        os.write(2, b"\njgraph: told to save and end; once more ends at once\n")

    before = {n: signal.signal(n, tell) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
