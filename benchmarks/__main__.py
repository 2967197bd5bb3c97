"""Run a benchmark, `python -m benchmarks NAME`; without a name, the list.

`--cores N` keeps the whole process on N cores; `--threads N` gives XLA N threads, Python the rest.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import pkgutil
import platform

import jax

import benchmarks


def names() -> list[str]:
    """Return the subjects: the modules beside this one."""
    found = (m.name for m in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark and print its report line by line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--rounds", type=int, default=10, help="pairs of runs for each ratio")
    parser.add_argument("--cores", type=int, help="how many to use; None for all there are")
    parser.add_argument("--threads", type=int, help="of XLA on a CPU; None for one a core")
    parser.add_argument("--quick", action="store_true", help="a part of it")
    options = parser.parse_args(arguments)
    if min(options.rounds, 1 if options.threads is None else options.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    if options.cores is not None:
        _use_cores(parser, options.cores)
    if options.threads:
        os.environ["NPROC"] = str(options.threads)  # XLA reads it with the first array
    run = importlib.import_module(f"benchmarks.{options.name}").run
    chosen = {"quick": True} if options.quick else {}
    if not chosen.keys() <= inspect.signature(run).parameters.keys():
        parser.error(f"{options.name} has no --quick part")
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    cores = f"{options.cores or os.cpu_count()} cores, {options.threads or 'all'} for XLA"
    print(
        f"{options.name}: jax {jax.__version__} on {jax.devices()[0].device_kind}, {cores}, "
        f"load {load}, Python {platform.python_version()}"
    )
    for line in run(options.rounds, **chosen):
        print(line, flush=True)
    return 0


def _use_cores(parser: argparse.ArgumentParser, count: int) -> None:
    """Leave this process so many cores, before any library makes its threads."""
    there = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(there):
        parser.error(f"--cores must be 1 to {len(there)}")
    os.sched_setaffinity(0, there[-count:])


if __name__ == "__main__":
    raise SystemExit(main())
