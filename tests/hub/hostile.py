"""Modules made to do harm, or broken: what each of them ends in, and the memory that it takes.

    python tests/hub/hostile.py                 a table of all
    python tests/hub/hostile.py zip_slip        of one

Each is loaded in a process of its own. It must be refused with the error named here, in bounded
memory, and nothing may be written outside the cache, nor be left in it.
"""

# ruff: noqa: E402 (it runs where jgraph isn't installed, so its place is told first)

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import jgraph.hub  # before the children, whose memory would be that of the imports
import jgraph.models
from tests.hub.hostile_archives import ARCHIVES, Attack, tarred, zipped
from tests.hub.hostile_modules import MODULES

# What must not be taken for an attack.
HARMLESS = {"harmless_zip": Attack(zipped(), "loaded"), "harmless_tar": Attack(tarred(), "loaded")}
ATTACKS = {**ARCHIVES, **MODULES, **HARMLESS}
MOST_MB = 200

_MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
import jax.numpy as jnp
from flax import nnx
import jgraph as jg
model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
jg.hub.publish(sys.argv[2], model, inputs={"x": jnp.zeros((1, 2))})
"""


def attack(name: str, module: Path, place: Path) -> dict[str, Any]:
    """Make a hostile module in a sandbox, load it in a child process, and say how that ended.

    Args:
        name: which one.
        module: the folder of a good module to start from.
        place: an empty folder, in which everything happens.
    """
    sandbox, made = place / "sandbox", place / "made"
    for folder in (sandbox / "home", sandbox / "deep/er/cache", made):
        folder.mkdir(parents=True)
    (sandbox / "victim").write_text("as it was")
    handle = ATTACKS[name].make(module, made, sandbox)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            row = _load(handle, sandbox)
            os.write(writer, json.dumps(row).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    _, status = os.waitpid(child, 0)
    row = json.loads(data) if data else {"error": f"died: {status}", "message": "", "mb": -1.0}
    expected = ATTACKS[name].error
    clean = _is_clean(sandbox, expected == "loaded")
    is_good = row["error"] == expected and clean and 0 <= row["mb"] < MOST_MB
    return {"attack": name, "expected": expected, "clean": clean, "good": is_good, **row}


def _load(handle: str, sandbox: Path) -> dict[str, Any]:
    os.chdir(sandbox / "home")
    os.environ.update(HOME=str(sandbox / "home"), JGRAPH_HUB_CACHE=str(sandbox / "deep/er/cache"))
    # A fresh high-water mark of this process's memory.
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _kilobytes("VmRSS"), time.perf_counter()
    error, message = "loaded", ""
    try:
        if handle.endswith((".pth", ".safetensors")):
            jgraph.models.read_weights(jgraph.hub.resolve(handle))
        else:
            module = jgraph.hub.load(handle)
            for name in module.signatures:
                module.runner(name, train=True)
                module.as_nnx(name)
    except Exception as caught:  # noqa: BLE001 (what it is, is what this is about)
        error, message = type(caught).__name__, str(caught)
    peak = (_kilobytes("VmHWM") - before) / 1024
    seconds = time.perf_counter() - start
    return {"error": error, "message": message[:1000], "mb": peak, "seconds": seconds}


def _kilobytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)


def _is_clean(sandbox: Path, is_loaded: bool) -> bool:
    """Return whether the sandbox is as it was, and the cache has what it may have."""
    cache = sandbox / "deep/er/cache"
    left = {path.relative_to(cache).parts[0] for path in cache.rglob("*") if not path.is_dir()}
    others = [
        path
        for path in sandbox.rglob("*")
        if not path.is_dir() and not path.is_relative_to(cache) and path.name != "victim"
    ]
    is_kept = (sandbox / "victim").read_text() == "as it was"
    return not others and is_kept and (is_loaded or left <= {"locks"})


def run_all(names: list[str], module: Path | None = None) -> list[dict[str, Any]]:
    """Run attacks and return a row for each."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        if module is None:
            # Elsewhere: a process that has run JAX can't be forked.
            module = Path(place) / "line"
            subprocess.run([sys.executable, "-c", _MAKE, str(ROOT), str(module)], check=True)
        for number, name in enumerate(names):
            (Path(place) / str(number)).mkdir()
            rows.append(attack(name, module, Path(place) / str(number)))
    return rows


def main() -> int:
    """Print a table; return 1 where an attack had any success."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="ATTACK")
    parser.add_argument("--module", type=Path, help="the folder of a good module; left out: made")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    rows = run_all(args.names or list(ATTACKS), args.module)
    if args.json:
        print(json.dumps(rows))
        return 0
    print(f"{'attack':30} {'error':22} {'peak MB':>8} {'seconds':>8}  what was said")
    for row in rows:
        mark = " " if row["good"] else "!"
        said = " ".join(row["message"].split())
        print(
            f"{row['attack']:30}{mark}{row['error']:22} {row['mb']:8.1f} {row['seconds']:8.2f}  "
            f"{said[:150]}"
        )
    good = sum(row["good"] for row in rows)
    print(
        f"{good} of {len(rows)} as they should be; most memory {max(r['mb'] for r in rows):.0f} MB"
    )
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
