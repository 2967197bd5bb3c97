"""`python -m benchmarks NAME [--rounds N] [--threads N]`; without a name, the list."""

from __future__ import annotations

import argparse
import importlib
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
    parser.add_argument(
        "--threads", type=int, help="threads XLA computes with on a CPU; without it, all cores"
    )
    options = parser.parse_args(arguments)
    if min(options.rounds, 1 if options.threads is None else options.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    if options.threads:
        os.environ["NPROC"] = str(options.threads)  # XLA reads it with the first array
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    cores = f"{os.cpu_count()} cores, {options.threads or 'all'} for XLA"
    print(
        f"{options.name}: jax {jax.__version__} on {jax.devices()[0].device_kind}, {cores}, "
        f"load {load}, Python {platform.python_version()}"
    )
    for line in importlib.import_module(f"benchmarks.{options.name}").run(options.rounds):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
