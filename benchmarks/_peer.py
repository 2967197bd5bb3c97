"""A program of another library in a process of its own Python, which takes turns with ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
PYTHON_VARIABLE = "JGRAPH_PEERS_PYTHON"


def python(needs: str) -> Path | None:
    """Return the Python of the peers, if there is one that has a package.

    It is what `JGRAPH_PEERS_PYTHON` names, else that of the environment `benchmarks/setup` makes.
    """
    chosen = os.environ.get(PYTHON_VARIABLE)
    path = Path(chosen) if chosen else _ROOT / ".venv-peers" / "bin" / "python"
    if not path.exists():
        return None
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({needs!r}) is None)"
    return path if subprocess.run([path, "-c", code], check=False).returncode == 0 else None


class Peer:
    """A program of `_peer_programs.py` that is running and waits for its turns."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def turn(self) -> float:
        """Let it take a turn; return the CPU seconds that it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer ended: {self._process.args!r:.200}")
        return float(json.loads(answer))


@contextmanager
def running(name: str, needs: str, **arguments: Any) -> Iterator[Peer | None]:
    """Start a program of another library; None where its package isn't installed.

    Args:
        name: in `_peer_programs.PROGRAMS`.
        needs: the package.
        **arguments: of the program, JSON-ready.
    """
    interpreter = python(needs)
    if interpreter is None:
        yield None
        return
    command = [interpreter, Path(__file__).with_name("_peer_programs.py"), name]
    with subprocess.Popen(
        [*map(str, command), json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    ) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()
