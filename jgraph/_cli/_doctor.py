"""The command that says whether jgraph works here: doctor."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jgraph._cli._parser import Parser
from jgraph._version import __version__

EXAMPLES = """\
  jgraph doctor
  jgraph doctor --json"""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_NVIDIA = Path("/proc/driver/nvidia/version")


class Check(NamedTuple):
    """What was looked at, and what was found.

    Attributes:
        name: what was looked at.
        works: whether it works.
        sentence: what was found, and what to do where it doesn't work.
        details: for programs that read it.
    """

    name: str
    works: bool
    sentence: str
    details: Any


def add_doctor(commands: Any) -> Parser:
    """Add `jgraph doctor`."""
    parser = commands.add_parser(
        "doctor",
        examples=EXAMPLES,
        help="say whether jgraph works here",
        description="Say what is installed, what it runs on, and whether it works. The exit code "
        "is 1 where something is broken.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_doctor, debug=False)
    return parser


def _doctor(args: argparse.Namespace) -> int:
    checks = list(_checks())
    if args.json:
        rows = [check._asdict() for check in checks]
        print(json.dumps({"works": all(c.works for c in checks), "checks": rows}, indent=1))
    else:
        for check in checks:
            print(f"{'ok' if check.works else 'BROKEN':8}{check.sentence}")
    return 0 if all(check.works for check in checks) else 1


def _checks() -> Iterator[Check]:
    versions = _guarded("versions", _versions)
    yield versions
    if not versions.works:  # nothing else can be asked without them
        return
    yield _guarded("devices", _devices)
    for level in ("all", "functions"):
        yield _guarded(f"debug level {level}", lambda level=level: _debug_level(level))
    yield _guarded("cache", _cache)
    yield _guarded("compiled programs", _compiled_programs)


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """Return a check, also where looking fails: the rest is still to be looked at."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001 (what is broken may fail in any way)
        reason = " ".join(str(error).split())
        return Check(name, False, f"{name}: {type(error).__name__}: {reason}", None)


def _versions() -> Check:
    found = {"python": platform.python_version(), "jgraph": __version__}
    for name in _PACKAGES:
        found[name] = importlib.import_module(name).__version__
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    return Check("versions", True, f"Versions: {listed}.", found)


def _devices() -> Check:
    import jax
    import jax.numpy as jnp

    devices = jax.devices()
    kinds = [d.device_kind for d in devices]
    total = int(jax.jit(lambda x: (x * x).sum())(jnp.arange(4)))
    if total != 14:
        raise ArithmeticError(f"0 + 1 + 4 + 9 came out as {total}")
    listed = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    advice = ""
    if devices[0].platform == "cpu" and _NVIDIA.exists() and not os.environ.get("JAX_PLATFORMS"):
        advice = "; an NVIDIA driver is here too, and the extra jgraph[cuda] would use it"
    return Check("devices", True, f"JAX compiles and computes on {listed}{advice}.", kinds)


def _debug_level(level: Literal["all", "functions"]) -> Check:
    import jax
    import jax.numpy as jnp

    from jgraph.debug import debug_mode

    seen: list[str] = []

    def loss(x: jax.Array) -> jax.Array:
        seen.append(type(x).__name__)
        return (x**2).sum()

    x = jnp.arange(3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # its content is the sentence below
        with debug_mode(level):
            gradient = jax.grad(loss)(x)
    if not jnp.array_equal(gradient, 2 * x):
        raise ArithmeticError(f"the gradient of a square came out as {gradient}")
    works = seen == [type(x).__name__]
    found = (
        f"works: inside gradients too, values are plain arrays ({seen[0]})"
        if works
        else f"stops at breakpoints, but inside gradients values are tracers: jgraph doesn't know "
        f"the inside of jax {jax.__version__}; install a jax that jgraph names, or a newer jgraph"
    )
    return Check(f"debug level {level}", works, f"Debug mode, level {level!r}, {found}.", seen)


def _cache() -> Check:
    from jgraph._cache import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder)
    return Check("cache", True, f"The cache {folder} can be written.", str(folder))


def _compiled_programs() -> Check:
    from jgraph._cache import enable_compilation_cache

    name = "compiled programs"
    folder = enable_compilation_cache()
    if folder is None:
        sentence = (
            "Compiled programs can't be kept, so that every process compiles them again; let "
            "JGRAPH_CACHE name a folder that can be written."
        )
        return Check(name, False, sentence, None)
    if "://" not in str(folder):  # a bucket is JAX's own business
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder)
    return Check(name, True, f"Compiled programs are kept in {folder}.", str(folder))


def _write(folder: Path) -> None:
    with contextlib.closing(tempfile.TemporaryFile(dir=folder)) as file:
        file.write(b"jgraph")
