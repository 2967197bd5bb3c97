"""A logarithm of what became negative, in the middle of a gradient; nobody catches it."""

import sys

import jax
import jax.numpy as jnp

import jgraph as jg


def loss_fn(weight: jax.Array) -> jax.Array:
    if sys.argv[1:] == ["shape"]:
        return (weight @ jnp.ones(3)).sum()  # mark: shape
    return jnp.log(weight).sum()  # mark: log


def main() -> None:
    with jg.debug_mode():
        print(jax.grad(loss_fn)(jnp.array([1.0, -1.0])))


if __name__ == "__main__":
    main()
