"""Loads many damaged graph files and counts how each ends.

    python tests/graph/fuzz_graph_files.py --count 100000

A file may load and trace, or be refused with GraphFormatError. Everything else is a defect and is
listed with its number: another exception, a crash, more than a second of processor time, more than
200 MB. A number replays its file: `--first NUMBER --count 1 --show`.
"""

# ruff: noqa: E402 (it runs where jgraph isn't installed, so its place is told first)

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import functools
import gc
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jgraph._errors import GraphFormatError, InputError
from jgraph.graph import Graph, function
from jgraph.graph._file._kinds import DTYPES, as_dtype
from jgraph.graph._file._table import TABLE
from jgraph.graph._matching import outcome_of

SECONDS = 1.0
MEGABYTES = 200
BATCH = 500  # files that one process loads
_STUCK = 60.0  # seconds of wall time without a word before a process is ended

Path_ = tuple[Any, ...]


class Sample(NamedTuple):
    """A sound graph file: its document, and its tensors as safetensors has them."""

    document: dict[str, Any]
    tensors: bytes | None


# Sound files.


def _elementwise(model: nnx.Linear, x: jax.Array) -> jax.Array:
    return jnp.tanh(model(x)) * 2.0 + jnp.exp(-(x[:, :1] ** 2))


def _loops(x: jax.Array) -> Any:
    def body(c: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.cond(row.sum() > 0, lambda c: c + row, lambda c: c - row, c), c.sum()

    last, rows = jax.lax.scan(body, jnp.zeros(3), x)
    return jax.lax.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, last), rows


def _indexed(x: jax.Array, at: jax.Array) -> jax.Array:
    picked = x.at[at].add(x[at] * 2.0)
    return jnp.pad(picked[1:, ::2], ((0, 1), (2, 0))) + jnp.sort(x[:, :1], axis=0)


def _derived(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.nn.relu(x), jax.grad(lambda x: jax.nn.silu(x).sum() + jax.nn.relu(x).sum())(x)


def _random(rngs: nnx.Rngs, x: jax.Array) -> jax.Array:
    return x * jax.random.bernoulli(rngs.params(), 0.5, x.shape).astype("float32") + 1.0


@functools.cache
def samples() -> tuple[Sample, ...]:
    """Save five small graphs and return what is in their files."""
    (n,) = jax.export.symbolic_shape("n", constraints=["n >= 2"])
    floats = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    model, rngs = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Rngs(1)
    graphs = [
        function(_elementwise).graph(model, jax.ShapeDtypeStruct((n, 3), jnp.float32)),
        function(_loops).graph(floats),
        function(_indexed).graph(floats, jax.ShapeDtypeStruct((2,), jnp.int32)),
        function(_derived).graph(floats),
        function(_random).graph(rngs, floats),
    ]
    with tempfile.TemporaryDirectory() as folder:
        return tuple(_saved(graph, f"{folder}/sample.graph") for graph in graphs)


def _saved(graph: Graph, path: str) -> Sample:
    graph.save(path)
    with zipfile.ZipFile(path) as archive:
        tensors = archive.read("state.safetensors") if len(archive.namelist()) == 2 else None
        return Sample(json.loads(archive.read("graph.json")), tensors)


def pack(text: str | bytes, tensors: bytes | None) -> bytes:
    """Return a graph file of this graph.json."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("graph.json", text, zipfile.ZIP_DEFLATED, 1)
        if tensors is not None:
            archive.writestr("state.safetensors", tensors)
    return buffer.getvalue()


# Damaged ones.


_NUMBERS = (-1, 0, 1, 2, 3, 5, 31, 64, 1000, 4097, 10**6, 2**31, 10**12, 2**40, 2**63, 10**30)
_FLOATS = (-0.5, 0.0, 1.5, 1e38, 1e300, 1e999)
_TEXTS = (
    *("", "n", "m", "n + 1", "-n", "2*n", "n^8", "floordiv(n, 0)", "mod(n, n)", "9^8^8", "n - n"),
    *("max(n, 3)", "(" * 200, "float32", "int8", "float0", "key<fry>", "key<rbg>", "complex64"),
    *("nan", "-inf", "constant/0", "state/0", "\ud800", "a" * 5000, "jgraph-place-²", "../x", "²"),
    *("n >= 3", "n == 2", "n <= 0", "n == n", "mod(n, 2) == 0", "2*n == 3", "é"),
)


def values(document: Any) -> Iterator[tuple[Path_, Any]]:
    """Walk a document: each value with its path."""
    waiting: list[tuple[Path_, Any]] = [((), document)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if isinstance(value, dict):
            waiting += [((*path, key), x) for key, x in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, i), x) for i, x in enumerate(value)]


def replaced(document: Any, path: Path_, value: Any) -> Any:
    """Return a document with another value at a path."""
    if not path:
        return value
    changed = copy.copy(document)
    changed[path[0]] = replaced(document[path[0]], path[1:], value)
    return changed


def mutated(pick: random.Random, document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with one to four random changes."""
    document = copy.deepcopy(document)
    for _ in range(pick.choice((1, 1, 1, 2, 3, 4))):
        change = pick.choice(_CHANGES)
        change(pick, document)
    return document


def _parents(document: Any) -> list[Any]:
    return [x for _, x in values(document) if isinstance(x, (dict, list)) and x]


def _place(pick: random.Random, document: Any) -> tuple[Any, Any]:
    parent = pick.choice(_parents(document) or [{"": 0}])
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    return parent, pick.choice(keys)


def _value(pick: random.Random, like: Any = None) -> Any:
    if isinstance(like, int) and not isinstance(like, bool) and pick.random() < 0.7:
        return like + pick.choice((-2, -1, 1, 2, 3))
    if isinstance(like, str) and pick.random() < 0.5:
        return pick.choice((*TABLE, "custom", "constant", *DTYPES))
    kinds = (
        lambda: pick.choice(_NUMBERS),
        lambda: pick.choice(_FLOATS),
        lambda: pick.choice(_TEXTS),
        lambda: pick.choice((None, True, False, [], {}, [[]], [0, 0])),
        lambda: [pick.choice(_NUMBERS) for _ in range(pick.randrange(4))],
        lambda: {"c": pick.choice((*_FLOATS, *_NUMBERS, "nan")), "t": pick.choice(DTYPES)},
    )
    return pick.choice(kinds)()


def _replace(pick: random.Random, document: Any) -> None:
    parent, key = _place(pick, document)
    parent[key] = _value(pick, parent[key])


def _delete(pick: random.Random, document: Any) -> None:
    parent, key = _place(pick, document)
    del parent[key]


def _duplicate(pick: random.Random, document: Any) -> None:
    parent, key = _place(pick, document)
    if isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[f"{key} again"] = copy.deepcopy(parent[key])


def _swap(pick: random.Random, document: Any) -> None:
    (first, one), (second, other) = _place(pick, document), _place(pick, document)
    first[one], second[other] = copy.deepcopy(second[other]), copy.deepcopy(first[one])


def _steps(document: Any) -> list[list[Any]]:
    """Return what still looks like the steps of functions."""
    functions = document.get("functions")
    bodies = [x for x in functions if isinstance(x, list)] if isinstance(functions, list) else []
    lists = [body[2] for body in bodies if len(body) == 4 and isinstance(body[2], list)]
    return [s for steps in lists for s in steps if isinstance(s, list) and len(s) == 5]


def _other_op(pick: random.Random, document: Any) -> None:
    """Put another operation in a step's place, often with parameters it could have."""
    steps = _steps(document)
    if steps:
        step = pick.choice(steps)
        step[0] = pick.choice((*TABLE, *TABLE, "custom", "constant"))
        if step[0] in TABLE and pick.random() < 0.9:
            step[3] = {name: _param(pick, name) for name in TABLE[step[0]].kinds}
            arity, outputs = TABLE[step[0]].arity, TABLE[step[0]].outputs
            step[1] = _refs(pick, step[1], arity)
            step[2] = step[2] if outputs is None else outputs


def _refs(pick: random.Random, refs: Any, arity: int | None) -> Any:
    if arity is None or not isinstance(refs, list):
        return refs
    found = [pick.choice(refs) if refs else pick.randrange(3) for _ in range(arity)]
    return refs if len(refs) == arity else found


def _other_param(pick: random.Random, document: Any) -> None:
    steps = [s for s in _steps(document) if isinstance(s[3], dict) and s[3]]
    if steps:
        params = pick.choice(steps)[3]
        key = pick.choice(list(params))
        params[key] = _param(pick, key)


def _param(pick: random.Random, name: str) -> Any:
    """Return a value that the parameter of this name could have."""
    small = functools.partial(pick.choice, (-1, 0, 0, 1, 1, 2, 3, 4))
    size = functools.partial(pick.choice, (0, 1, 2, 3, 3, 4, 6, 12, "n", "n + 1", 10**9, 2**40))
    row = [small() for _ in range(pick.randrange(4))]
    if name in _LISTS_OF_LISTS:
        return [[small() for _ in range(pick.choice(_LISTS_OF_LISTS[name]))] for _ in range(2)]
    if "dtype" in name or name.endswith("_type"):
        return pick.choice((*DTYPES, "key<fry>", "key<rbg>", "float32", "int32", "bool"))
    if name in ("shape", "new_sizes", "slice_sizes", "sizes", "dim", "window_dimensions"):
        return size() if name == "dim" else [size() for _ in range(pick.randrange(4))]
    if name in ("mode", "rounding_method", "select", "precision"):
        texts = ("CLIP", "PROMISE_IN_BOUNDS", "FILL_OR_DROP", "TO_NEAREST_EVEN", "ge", "le", None)
        return pick.choice(texts)
    if name in _FLAGS:
        return pick.random() < 0.5
    if name in ("length", "unroll", "k", "y", "bit_width", "exponent_bits", "mantissa_bits"):
        return pick.choice((*_NUMBERS, 4, 8, 16, 32, 64))
    if name == "branches":
        return [small() for _ in range(pick.randrange(4))]
    return pick.choice((small(), row, row, row, None, [small()], list(range(pick.randrange(4)))))


_LISTS_OF_LISTS: Mapping[str, tuple[int, ...]] = {
    "padding_config": (3,),
    "padding": (2,),
    "contract": (0, 1, 1, 2),
    "batch": (0, 0, 1),
    "dimension_numbers": (2, 3, 4),
}
_FLAGS = frozenset(
    (
        *("reverse", "is_stable", "indices_are_sorted", "unique_indices", "prevent_cse"),
        *("left_side", "lower", "transpose_a", "conjugate_a", "unit_diagonal"),
    )
)
_CHANGES: tuple[Callable[[random.Random, Any], None], ...] = (
    *(_replace, _replace, _delete, _duplicate, _swap, _swap),
    *(_other_op, _other_op, _other_op, _other_param, _other_param, _other_param),
)


def damaged(pick: random.Random, data: bytes) -> bytes:
    """Return bytes with a few of them changed, lost, doubled or moved."""
    found = bytearray(data)
    for _ in range(pick.choice((1, 1, 2, 4))):
        at = pick.randrange(len(found)) if found else 0
        end = at + pick.choice((1, 2, 4, 8, 64))
        kind = pick.randrange(6)
        if kind == 0:
            del found[at:]
        elif kind == 1:
            del found[at:end]
        elif kind == 2:
            found[at:at] = found[at:end]
        elif kind == 3:
            found[at:end] = bytes([pick.choice((0, 255))]) * (end - at)
        elif found:
            found[at] ^= 1 << pick.randrange(8)
    return bytes(found)


def damaged_file(pick: random.Random, sample: Sample) -> bytes:
    """Return the bytes of a damaged graph file."""
    kind = pick.random()
    document, tensors = sample
    if kind < 0.8:
        return pack(json.dumps(mutated(pick, document)), tensors)
    text = json.dumps(document).encode()
    if kind < 0.88:
        return pack(damaged(pick, text), tensors)
    if kind < 0.94 and tensors is not None:
        (size,) = np.frombuffer(tensors[:8], "<u8")
        head = 8 + int(size)
        return pack(text, damaged(pick, tensors[:head]) + tensors[head:])
    return damaged(pick, pack(text, tensors))


def file_number(number: int) -> bytes:
    """Return the damaged file of this number, always the same."""
    pick = random.Random(number)
    return damaged_file(pick, pick.choice(samples()))


# Loading them.


class HangError(BaseException):
    """A file took too long; no `except Exception` keeps it from being counted."""


def load_and_trace(path: str | os.PathLike[str]) -> None:
    """Do all that must end in a program or in GraphFormatError."""
    graph = Graph.load(path)
    problem = None
    try:
        _ = graph.jaxpr, graph.inputs, graph.outputs
    except GraphFormatError as error:
        problem = error
    _call(graph)
    if problem is not None:
        raise problem


def _call(graph: Graph) -> None:
    """Trace a call, which goes another way than `jaxpr`, and its derivative."""
    traced: Any = graph._traced
    inputs = [
        jax.ShapeDtypeStruct([n if isinstance(n, int) else 4 for n in x.shape], as_dtype(x.dtype))
        for x in traced.document.inputs
    ]

    def outcome(*flat: Any) -> Any:
        leaves, _ = jax.tree.unflatten(traced.structure, flat)
        return outcome_of(traced.plan, graph._interface.paths, leaves, graph._execution(*flat))

    def derivative(*flat: Any) -> Any:
        tangents = [x if jnp.issubdtype(x.dtype, jnp.inexact) else _no_tangent(x) for x in flat]
        return jax.jvp(lambda *xs: traced.run(xs), flat, tuple(tangents))[1]

    for run in (outcome, derivative):
        with contextlib.suppress(InputError):
            jax.eval_shape(run, *inputs)


def _no_tangent(x: jax.Array) -> np.ndarray:
    return np.zeros(x.shape, jax.dtypes.float0)


def outcome(number: int, folder: str) -> str:
    """Load and trace one file and say how it ended."""
    path = f"{folder}/{number % 2}.graph"
    Path(path).write_bytes(file_number(number))
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    hung: list[bool] = []

    def ring(*_: Any) -> None:
        hung.append(True)
        raise HangError

    signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)
    try:
        load_and_trace(path)
        found = "loaded and traced"
    except GraphFormatError as error:
        found = f"refused: {kind_of(str(error))}"
    except HangError:
        found = "hang"
    except MemoryError:
        found = "memory"
    except BaseException as error:  # noqa: BLE001 (counting them is what this is for)
        found = f"other: {type(error).__name__}: {error!s:.150}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if hung:
        return "hang"
    used = (_memory("VmHWM") - before) >> 10
    return f"memory: {used} MB" if used > MEGABYTES else found


def kind_of(message: str) -> str:
    """Return the part of a refusal that says what is wrong, without place and values."""
    message = re.sub(r"^\S+\.graph:? ", "", message)
    for word, kind in _KINDS.items():
        if re.search(word, message):
            return kind
    return "a wrong value: " + re.sub(r"\S*[\[\d]\S*", "…", message)[:60]


_KINDS = {
    "is none or damaged|is damaged|a graph file must hold|longer than": "the archive",
    "can't be applied": "an operation can't be applied",
    "doesn't have": "an unknown operation",
    "unknown parameter|lacks parameter": "parameters",
    "a value made before it": "a value that isn't made before",
    "takes .* inputs|makes .* outputs|must have as many": "a wrong number of inputs or outputs",
    "tensor": "tensors",
    "size": "sizes",
    "dtype": "a dtype",
    "must be|must have": "a value of a wrong kind",
}


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise AssertionError(key)


def work(first: int, count: int) -> None:
    """Load files and print a line for each: before it, so that a crash is known, and after it."""
    warnings.simplefilter("ignore")
    samples()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for sample in samples():  # so that no damaged file pays for what JAX does once
            Path(f"{folder}/sound.graph").write_bytes(pack(json.dumps(sample[0]), sample[1]))
            load_and_trace(f"{folder}/sound.graph")
        print("ready", flush=True)
        now = _memory("VmSize") << 10
        resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), now + (2 << 30)))
        for i, number in enumerate(range(first, first + count)):
            print(f"{number}\t", end="", flush=True)
            print(json.dumps(outcome(number, folder)), flush=True)
            if i % 100 == 99:
                jax.clear_caches()
                gc.collect()


# Counting.


def run(first: int, count: int, minutes: float) -> tuple[collections.Counter[str], list[str]]:
    """Load files in processes of their own; return counts of the outcomes, and the defects."""
    counts: collections.Counter[str] = collections.Counter()
    defects: list[str] = []
    number, started = first, time.monotonic()
    while number < first + count and time.monotonic() < started + 60 * minutes:
        batch = min(BATCH, first + count - number)
        for at, found in _batch(number, batch):
            kind = found.split(":")[0] if not found.startswith("refused") else found
            counts[kind] += 1
            if kind != "loaded and traced" and not found.startswith("refused"):
                defects.append(f"{at}: {found}")
                print(defects[-1], flush=True)
            number = at + 1
        done, seconds = number - first, time.monotonic() - started
        print(f"{done} files, {seconds:.0f} s", file=sys.stderr, flush=True)
    return counts, defects


def _batch(first: int, count: int) -> Iterator[tuple[int, str]]:
    command = [sys.executable, __file__, "--work", "--first", str(first), "--count", str(count)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    watch: threading.Timer | None = None
    at, ended = first - 1, True
    if process.stdout.readline() != "ready\n":
        raise RuntimeError("a process ended before its first file; --work says why")
    for line in process.stdout:
        if watch is not None:
            watch.cancel()
        watch = threading.Timer(_STUCK, process.kill)
        watch.start()
        number, _, said = line.partition("\t")
        at, ended = int(number), bool(said.strip())
        if ended:
            yield at, json.loads(said)
    if watch is not None:
        watch.cancel()
    code = process.wait()
    if at < first + count - 1 or not ended:
        lost = at if not ended else at + 1
        yield lost, "hang: killed" if code == -signal.SIGKILL else f"crash: exit code {code}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--count", type=int, default=100_000, help="how many")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--show", action="store_true", help="load them here and let errors out")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.first, given.count)
    elif given.show:
        for number in range(given.first, given.first + given.count):
            with tempfile.NamedTemporaryFile(suffix=".graph") as file:
                Path(file.name).write_bytes(file_number(number))
                load_and_trace(file.name)
    else:
        counts, defects = run(given.first, given.count, given.minutes)
        for kind, n in counts.most_common():
            print(f"{n:8} {kind}")
        print(f"{counts.total()} files, {len(defects)} defects")
        sys.exit(bool(defects))


if __name__ == "__main__":
    main()
