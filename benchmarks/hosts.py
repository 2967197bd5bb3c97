"""Several processes of this machine: the numbers of one, and one end for all.

Each line is a case: what came out, and the seconds that it took all processes to end after one had
failed. What must hold: losses are one process's to 2e-6, and the same to the bit where a run is
repeated; whatever fails, all end within 5 s with a code and words that say what failed. A process
that is stopped, so that its connections stay open, is found by the heartbeat: within it and 5 s.

With `--quick` 2 processes only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("_host_program.py")
SECONDS = 5.0
"""Within which all processes end, on a machine that does other things too."""
TOLERANCE = 2e-6
STEPS = 12
_ENDLESS = "500"  # steps; each takes at least 50 ms
_HEARTBEAT = 5
_PATIENCE = 240.0

Curve = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class End:
    """How a program of several processes ended.

    Args:
        code: its exit code; without the launcher that of the first process that wasn't stopped.
        text: what all wrote to stderr.
        ended: when all but stopped processes had ended, in seconds since 1970.
        began: when it was started.
    """

    code: int
    text: str
    ended: float
    began: float


@dataclasses.dataclass(frozen=True)
class Failure:
    """A failure, and what must come of it.

    Args:
        how: as the program is told.
        code: the exit code.
        words: in the last lines.
    """

    how: str
    code: int
    words: str


FAILURES = (
    Failure("raise", 1, "RuntimeError: a bug of one process"),
    Failure("data", 1, "OSError: the data of one process can't be read"),
    Failure("exit", 3, "process {process} failed with exit code 3"),
    Failure("kill", 137, "process {process} failed by SIGKILL"),
    Failure("term", 42, "all processes were told to end; start again to go on"),
)


def run(rounds: int, *, quick: bool = False) -> Iterator[str]:
    """Yield the report's lines; `rounds` counts for nothing, since every case is one run."""
    faults = 0
    with tempfile.TemporaryDirectory() as place:
        for is_good, line in _cases(Path(place), (2,) if quick else (2, 4)):
            faults += not is_good
            yield f"{'ok  ' if is_good else 'FAIL'}  {line}"
    yield f"{faults} cases aren't as they must be"
    if faults:
        raise SystemExit(1)


def _cases(place: Path, counts: tuple[int, ...]) -> Iterator[tuple[bool, str]]:
    alone = train(place / "alone", 1, "one")
    for count in counts:
        for strategy in ("data_parallel", "fsdp"):
            yield _equal(place, count, strategy, alone)
    for strategy in ("data_parallel", "fsdp"):
        yield _restarted(place, counts, strategy, alone)
    for count in (*counts, 3):
        yield _unequal(place, count)
    for count in counts:
        for process in (1, 0):
            for failure in FAILURES:
                yield _failed(place, count, failure, process)
    yield _wrong_count(place)
    for how, process in (("kill", 1), ("kill", 0), ("stop", 1), ("stop", 0)):
        yield _failed_without_launcher(place, how, process)


# What a case is made of; the tests use these, too.


def train(folder: Path, processes: int, strategy: str, *arguments: str) -> Curve:
    """Train in a folder as so many processes; return the curve.

    Raises:
        RuntimeError: it failed.
    """
    end = launch(processes, strategy, str(folder), str(STEPS), *arguments)
    if end.code:
        raise RuntimeError(f"{folder.name} must train, it ended with {end.code}:\n{end.text}")
    return curve(folder, processes)


def curve(folder: Path, processes: int) -> Curve:
    """Return the history that so many processes wrote into a folder."""
    return json.loads((folder / f"result-{processes}.json").read_text())


def difference(found: Curve, want: Curve) -> float:
    """Return the largest difference of the losses; infinity where one is missing.

    Runs that go on have more rows: each evaluates after its last step.
    """
    losses = {(row["step"], row["set"]): row["loss"] for row in found}
    inf = float("inf")
    return max(abs(losses.get((row["step"], row["set"]), inf) - row["loss"]) for row in want)


def launch(processes: int, *arguments: str) -> End:
    """Run the program by `jgraph launch`; its first arguments are strategy, folder and steps."""
    command = ["-m", "jgraph._cli", "launch", "--processes", str(processes), str(PROGRAM)]
    began = time.time()
    found = subprocess.run(
        [sys.executable, *command, *arguments],
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        env=_environment(Path(arguments[1]).parent),
        check=False,
    )
    return End(found.returncode, found.stderr, time.time(), began)


def start_alone(processes: int, *arguments: str, stopped: int | None = None) -> End:
    """Run the program without the launcher, as hosts of a cluster do.

    Args:
        processes: how many.
        arguments: the program's.
        stopped: the process that isn't waited for, and killed at the end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = _environment(Path(arguments[1]).parent)
    shared |= {"JGRAPH_COORDINATOR": address, "JGRAPH_NUM_PROCESSES": str(processes)}
    began = time.time()
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**shared, "JGRAPH_PROCESS_ID": str(number)},
        )
        for number in range(processes)
    ]
    waited = [rank for number, rank in enumerate(ranks) if number != stopped]
    try:
        texts = [rank.communicate(timeout=_PATIENCE)[1] for rank in waited]
        ended = time.time()
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    codes = [rank.returncode for rank in waited if rank.returncode != -signal.SIGKILL]
    return End(codes[0] if codes else 0, "\n".join(texts), ended, began)


def seconds_since_failure(folder: Path, end: End) -> float:
    """Return the seconds from a process's failure to the end of all."""
    return end.ended - float((folder / "failed").read_text())


def _environment(place: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
    }


# The cases: each returns whether all is as it must be, and its line.


def _equal(place: Path, count: int, strategy: str, alone: Curve) -> tuple[bool, str]:
    first, second = (train(place / f"{strategy}-{count}-{i}", count, strategy) for i in (1, 2))
    worst = difference(first, alone)
    return worst <= TOLERANCE and first == second, (
        f"{count} processes, {strategy}: {worst:.1e} from one process; run to run "
        f"{'the same' if first == second else f'{difference(first, second):.1e} apart'}"
    )


def _restarted(
    place: Path, counts: tuple[int, ...], strategy: str, alone: Curve
) -> tuple[bool, str]:
    folder, order = place / f"{strategy}-restarted", (*sorted(counts, reverse=True), 1)
    for i, count in enumerate(order):
        steps = str(STEPS * (i + 1) // len(order))
        end = launch(count, strategy, str(folder), steps)
        if end.code:
            return False, f"{strategy}, {count} processes going on: exit code {end.code}"
    worst = difference(curve(folder, 1), alone)
    shown = " to ".join(map(str, order))
    return worst <= TOLERANCE, f"{strategy}, {shown} processes: {worst:.1e} from one process"


def _unequal(place: Path, count: int) -> tuple[bool, str]:
    hosts = ("--hosts", str(count))
    alone = train(place / f"joined-{count}", 1, "one", *hosts)
    found = train(place / f"unequal-{count}", count, "data_parallel", *hosts)
    worst = difference(found, alone)
    return worst <= TOLERANCE, (
        f"{count} processes, data of their own, of {', '.join('4305'[:count])} batches: "
        f"{worst:.1e} from one process that has them joined"
    )


def _failed(place: Path, count: int, failure: Failure, process: int) -> tuple[bool, str]:
    folder = place / f"{failure.how}-{count}-{process}"
    asked = ("--fail", failure.how, "--process", str(process))
    end = launch(count, "data_parallel", str(folder), _ENDLESS, *asked)
    seconds = seconds_since_failure(folder, end)
    said = failure.words.format(process=process) in last_words(end)
    steps = set(re.findall(r"saved after step (\d+)", end.text))
    together = failure.how != "term" or len(steps) == 1
    what = f"saved after step {', '.join(sorted(steps)) or 'none'}, " if steps else ""
    return end.code == failure.code and said and together and seconds < SECONDS, (
        f"{count} processes, {failure.how} in process {process}: exit code {end.code}, {what}"
        f"{'says so' if said else 'does not say so'}, {seconds:.1f} s"
    )


def last_words(end: End) -> str:
    """Return the last lines of stderr."""
    return "\n".join(end.text.splitlines()[-3:])


def _wrong_count(place: Path) -> tuple[bool, str]:
    end = launch(2, "one", str(place / "count"), "4", "--expect", "3")
    said = "must be 3 processes" in end.text
    seconds = end.ended - end.began
    return end.code == 1 and said and seconds < 4 * SECONDS, (
        f"2 processes where the program says 3: exit code {end.code}, "
        f"{'says so' if said else 'does not say so'}, {seconds:.1f} s from the start"
    )


def _failed_without_launcher(place: Path, how: str, process: int) -> tuple[bool, str]:
    folder = place / f"alone-{how}-{process}"
    asked = ("--fail", how, "--process", str(process), "--heartbeat", str(_HEARTBEAT))
    stopped = process if how == "stop" else None
    end = start_alone(2, "data_parallel", str(folder), _ENDLESS, *asked, stopped=stopped)
    seconds = seconds_since_failure(folder, end)
    limit = SECONDS + (_HEARTBEAT if how == "stop" else 0)
    return end.code != 0 and seconds < limit, (
        f"2 processes, no launcher, heartbeat {_HEARTBEAT} s, {how} of process {process}: the "
        f"other ends with {end.code}, {seconds:.1f} s"
    )
