"""Benchmarks as paired ratios: `python -m benchmarks NAME`, one file a subject.

A benchmark is a module `benchmarks/NAME.py` with `run(rounds: int) -> Iterator[str]`, which yields
the lines of its report. Names that begin with an underscore are not subjects.
"""
