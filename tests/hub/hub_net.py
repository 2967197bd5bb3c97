"""The network of the hub's tests, and what publishes it by the end of the versions that runs this.

    python tests/hub/hub_net.py tests/data/modules

writes one folder per version of JAX, which stays: later versions must read it.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jgraph as jg

X = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
Y = np.array([0, 1, 0, 1, 1, 0, 1, 0])


class Net(nnx.Module):
    """Batch normalisation, dropout, a list of blocks and a head that `features` doesn't use."""

    def __init__(self, rngs: nnx.Rngs, drop: float = 0.5) -> None:
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(drop, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def features(self, x):
        """Return features, [B, 8]."""
        x = nnx.relu(self.norm(self.first(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.drop(x)

    def __call__(self, x):
        """Return logits, [B, 3]."""
        return self.head(self.features(x))


def make_net(**options):
    """Return the network in evaluation mode, its statistics not those of a new one."""
    net = Net(nnx.Rngs(0), **options)
    net.eval()
    net.norm.mean[...] = jnp.linspace(-0.3, 0.4, 8)
    return net


def main(folder: Path) -> None:
    """Publish the network and what it computes."""
    net = make_net()
    path = jg.hub.publish(folder / f"net-jax{jax.__version__}", net, inputs={"x": X})
    rows = {"default": net(X).tolist(), "features": net.features(X).tolist()}
    path.with_suffix(path.suffix + ".json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
