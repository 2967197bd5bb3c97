"""Report how far our networks are from their peers', with the weight files the peers wrote.

    python tests/parity/compare_networks.py FOLDER [NAME …]

FOLDER is what make_torch_networks.py and make_keras_networks.py wrote. The exit code is 1 where
something is further off than it may be. See network_outputs.py for what the numbers mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from jgraph.models import create, weights_of
from tests.models.network_outputs import (
    counted,
    errors,
    evaluated,
    in_float64,
    parameters,
    trained,
)
from tests.models.network_references import LAYOUTS, expected

SUFFIXES = {"keras": (".h5", ".weights.h5", ".keras")}
# Of a step in float32, gradients are in the report alone: see in_float64. Inception V3's last
# statistics are of four numbers here: torch's own float32 is 5e-4 from its float64.
LIMITS = {"logits": 2e-5, "features": 2e-5, "train_logits": 2e-3, "statistics": 5e-4}
LIMITS_64 = {"train_logits": 1e-10, "gradients": 1e-7, "statistics": 1e-10}


def judge(off: dict[str, float], limits: dict[str, float]) -> str:
    shown = "  ".join(f"{key} {value:.1e}" for key, value in off.items())
    bad = [key for key, limit in limits.items() if not off[key] <= limit]
    return f"{shown}{'  BAD ' if bad else ''}{' '.join(bad)}"


def report(folder: Path, name: str) -> list[str]:
    network, _, origin = name.partition("-")
    files = [folder / f"{name}{s}" for s in SUFFIXES.get(origin, (".pth", ".safetensors"))]
    wanted = expected(name)
    model = create(network, weights=files[0])
    weights = weights_of(model)
    lines = [] if parameters(model) == counted(name) else ["BAD number of parameters"]
    for file in files[1:]:
        again = weights_of(create(network, weights=file))
        same = all(np.array_equal(again[path], value) for path, value in weights.items())
        lines += [] if same and again.keys() == weights.keys() else [f"BAD {file.name} differs"]
    off = errors(evaluated(model) | trained(model, name, wanted.get("counts")), wanted)
    lines.append(f"float32: {judge(off, LIMITS)}")
    with jax.enable_x64(True):
        model = in_float64(create(network, weights=files[0]))
        off = errors(trained(model, name, wanted.get("counts")), wanted)
    return [*lines, f"float64: {judge(off, LIMITS_64)}"]


def main(folder: Path, names: list[str]) -> int:
    failed = False
    for name in names or LAYOUTS:
        lines = report(folder, name)
        failed |= any("BAD" in line for line in lines)
        print(*(f"{name}  {line}" for line in lines), sep="\n", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
