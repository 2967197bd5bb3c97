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

    It is JAX's persistent compilation cache, in compiled/ of jgraph's cache folder: call it before
    anything is compiled. A folder that was chosen before, by the variable
    `JAX_COMPILATION_CACHE_DIR` or by `jax.config`, stays. Only what took a second to compile is
    kept, which `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` changes. The `jgraph` command and the
    scripts call this; a library shouldn't.

    Returns:
        The folder that is used, or None where it can't be written.

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
