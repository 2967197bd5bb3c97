"""Where jgraph keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """Return the user's cache folder of jgraph: `JGRAPH_CACHE`, or jgraph/ in the user cache."""
    own = os.environ.get("JGRAPH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jgraph"


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs on disk, so that the next process needn't compile them again.

    Does nothing where the user has set `jax_compilation_cache_dir` or
    `JAX_COMPILATION_CACHE_DIR`. The `jgraph` command calls this; Python programs may.

    Returns:
        The folder, or None where it can't be written.

    Example:
        >>> folder = enable_compilation_cache()
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen:
        return Path(chosen)
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
