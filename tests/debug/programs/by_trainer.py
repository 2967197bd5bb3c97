"""Three training steps by `train_and_evaluate`; the environment says whether in debug mode."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jgraph as jg


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.layer(x)
        return jnp.tanh(h)  # mark: model


def loss_fn(model: Network, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    errors = (model(batch["x"]) - batch["y"])[:, 0]
    return errors**2, {"largest": jnp.abs(errors)}  # mark: loss


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    batch = {"x": x, "y": x.sum(1, keepdims=True)}
    train = jg.TrainSpec([batch], max_steps=3, log_every=1)
    result = jg.train_and_evaluate(Network(nnx.Rngs(0)), loss_fn, optax.adam(1e-2), train=train)
    print([round(row["loss"], 5) for row in result.history])


if __name__ == "__main__":
    main()
