"""Benchmarks as paired ratios: `python -m benchmarks NAME`, one file a subject.

A benchmark is a module `benchmarks/NAME.py` with `run(rounds: int) -> Iterator[str]`, which yields
the lines of its report. Names that begin with an underscore are not subjects.
Other libraries run in `.venv-peers`, which `benchmarks/setup` makes, or in the Python that
`JGRAPH_PEERS_PYTHON` names; `dispatch` and `loop` time what is installed beside jgraph itself.
"""
