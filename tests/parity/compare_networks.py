"""Report how far our networks are from their peers', with the weight files the peers wrote.

    python tests/parity/compare_networks.py FOLDER [NAME …]

FOLDER is what make_torch_networks.py and make_keras_networks.py wrote. The exit code is 1 where
something is further off than it may be. See network_outputs.py for what the numbers mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jgraph.models import create
from tests.models.network_outputs import counted, errors, evaluated, parameters, trained
from tests.models.network_references import LAYOUTS, expected

SUFFIXES = {"keras": (".h5", ".weights.h5", ".keras")}
LIMITS = {
    "logits": 2e-5,
    "features": 2e-5,
    "train_logits": 1e-4,
    "statistics": 1e-4,
    "gradients": 1e-3,
}


def main(folder: Path, names: list[str]) -> int:
    failed = False
    for name in names or LAYOUTS:
        network, _, origin = name.partition("-")
        wanted = expected(name)
        for number, suffix in enumerate(SUFFIXES.get(origin, (".pth", ".safetensors"))):
            model = create(network, weights=folder / f"{name}{suffix}")
            found = evaluated(model)
            if number == 0:
                found |= trained(model, name, wanted.get("counts"))
            off = errors(found, wanted)
            same = parameters(model) == counted(name)
            bad = not same or any(off[key] > LIMITS[key] for key in off)
            failed |= bad
            shown = "  ".join(f"{key} {value:.1e}" for key, value in off.items())
            print(
                f"{name}{suffix}: {shown}{'  BAD' if bad else ''}{'' if same else ' COUNT'}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
