"""Test settings that must hold before jax is first used, for tests/ and for doctests in jgraph/."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The folders behind the links jgraph/models and jgraph/losses: collected there, under their names.
collect_ignore = ["models", "losses"]
