"""Fine-tuning that is stopped and goes on, over and over: does memory grow, is any file left?

`--rounds` is the minutes. For the first half one process fine-tunes, is told to stop at a random
moment (Ctrl-C), goes on, and does that again: its memory is read after each run. For the second
half each run is stopped up to three times (SIGKILL, SIGTERM or Ctrl-C, as chance has it) and
another process goes on with it, as a user would. Every run must end with the bytes of one that
nobody stopped, and leave no file but its own.
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SETTINGS = {"unfreeze": "last:2", "epochs": 2, "image_size": 64}
SAME = ("weights.safetensors", "metrics.csv", "metrics.json", "split.json")
_STOPS = 3  # at most, of a run
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_MIB = 2**20


class Place:
    """A folder where all that jgraph writes is seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work, self.temporary, self.cache = (folder / n for n in ("work", "tmp", "cache"))
        for one in (self.work, self.temporary, self.cache):
            one.mkdir()

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a Python program there."""
        places = {
            "TMPDIR": str(self.temporary),
            "JGRAPH_CACHE": str(self.cache),
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
        }
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.work,
            env={**os.environ, **places},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def left(self) -> list[str]:
        """Return the files that are nobody's: neither the whole run's nor the cache's."""
        own = {self.work / "whole"}
        found = [path for path in self.work.iterdir() if path not in own]
        return [str(path.relative_to(self.folder)) for path in [*found, *self.temporary.iterdir()]]

    def cached(self) -> int:
        """Return the bytes in the cache."""
        return sum(path.stat().st_size for path in self.cache.rglob("*") if path.is_file())


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        since = time.monotonic()
        finetune(place, "whole").communicate()
        seconds = time.monotonic() - since
        before = place.cached()
        wrong: list[str] = []
        yield from _one_process(place, rounds * 30, seconds, wrong)
        yield from _killed(place, rounds * 30, seconds, wrong)
        yield f"the cache: {before / _MIB:.1f} MiB after one run, {place.cached() / _MIB:.1f} now"
        yield f"files left behind: {', '.join(place.left()) or 'none'}"
        yield from wrong
        if wrong or place.left():
            raise SystemExit(1)


def finetune(place: Place, name: str) -> subprocess.Popen[str]:
    """Start a run, or go on with it where it was stopped; it mustn't be done."""
    if (place.work / f"{name}.unfinished").exists():
        return place.start("jgraph._cli", "finetune", "--resume", name)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
    return place.start("jgraph._cli", "finetune", *options, "--out", name)


def _killed(place: Place, lasting: float, seconds: float, wrong: list[str]) -> Iterator[str]:
    moments = random.Random(0)
    peaks: list[float] = []
    runs = stops = 0
    end = time.monotonic() + lasting
    while time.monotonic() < end or not peaks:
        name = f"run-{runs}"
        for _ in range(moments.randint(1, _STOPS)):
            process = finetune(place, name)
            try:
                process.communicate(timeout=moments.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(moments.choice(_SIGNALS))
                process.communicate()
                stops += 1
            if (place.work / name).exists():
                break  # it was done
        else:
            process = finetune(place, name)
            assert process.stdout is not None
            process.stdout.read()
            _, _, used = os.wait4(process.pid, 0)
            process.returncode = 0  # it is waited for
            peaks.append(used.ru_maxrss / 1024)
        runs += 1
        wrong += _differences(place.work, name)
    yield (
        f"{runs} runs, stopped {stops} times and gone on with by another process; peak "
        f"memory of the last process of each, in MiB: {min(peaks):.0f} to {max(peaks):.0f}"
    )


def _one_process(place: Place, lasting: float, seconds: float, wrong: list[str]) -> Iterator[str]:
    process = place.start("benchmarks.soak", str(lasting), str(seconds))
    assert process.stdout is not None
    memory: list[float] = []
    stops = 0
    for line in process.stdout:
        if line.startswith("soak "):
            _, name, stopped, resident = line.split()
            memory.append(float(resident))
            stops += int(stopped)
            wrong += _differences(place.work, name)
    if process.wait():
        wrong.append(f"the one process failed with exit code {process.returncode}")
        return
    yield (
        f"{len(memory)} runs in one process, stopped {stops} times; its memory after each, in MiB: "
        f"{' '.join(f'{one:.0f}' for one in memory)}"
    )


def _differences(work: Path, name: str) -> list[str]:
    """Compare a run with the whole one, and remove it."""
    if not (work / name).exists():
        return [f"{name} failed"]
    _, differing, missing = filecmp.cmpfiles(work / "whole", work / name, SAME, shallow=False)
    shutil.rmtree(work / name)
    return [f"{name}: {file} differs" for file in (*differing, *missing)]


def repeat(lasting: float, seconds: float) -> None:
    """Fine-tune, stop and go on for so many seconds, in this process."""
    end = time.monotonic() + lasting
    moments = random.Random(1)
    count = 0
    while time.monotonic() < end or not count:
        name, stops = f"one-{count}", 0
        settings: dict[str, Any] = {**SETTINGS, "out": name}
        since = time.monotonic()
        while True:
            if count and stops < _STOPS:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(0, 1.5 * seconds))
            try:
                _finetune(settings)
                break
            except KeyboardInterrupt:
                stops += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if Path(f"{name}.unfinished").exists():
                settings = {"resume": name}
        if not stops:
            seconds = time.monotonic() - since  # without the first compilations
        print("soak", name, stops, _resident(), flush=True)
        count += 1


def _resident() -> float:
    """Return this process's memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def _finetune(settings: dict[str, Any]) -> None:
    import jgraph as jg

    jg.finetune(**settings)


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    repeat(float(sys.argv[1]), float(sys.argv[2]))
