"""JAX's settings that traces and programs depend on."""

from __future__ import annotations

import jax
from jax.extend.core import find_top_trace

# As the outermost code of any thread sees it.
_TOP_LEVEL = find_top_trace(())

# As users set them; they are part of what JAX keys its traces and programs on.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_device",
    "jax_default_prng_impl",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_threefry_partitionable",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_check_tracer_leaks",
    "jax_softmax_custom_jvp",
    "jax_disable_most_optimizations",
)


def settings_now() -> dict[str, str]:
    """Return the settings that hold in this thread, by name."""
    found = {name: str(getattr(jax.config, name, None)) for name in _SETTINGS}
    mesh = jax.sharding.get_abstract_mesh()
    return found | {"mesh": "none" if mesh is None or mesh.empty else str(dict(mesh.shape))}


def is_inside_trace() -> bool:
    """Return whether this code runs under an outer trace: jit, grad, vmap, scan."""
    return find_top_trace(()) is not _TOP_LEVEL
