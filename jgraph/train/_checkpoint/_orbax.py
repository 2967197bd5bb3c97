"""Arrays on disk by Orbax: only this file knows it. Its import takes 0.2 s, hence within."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgraph._errors import CheckpointWriteError


class Writer:
    """Writes one set of arrays after the other, each on background threads."""

    def __init__(self) -> None:
        self._orbax: Any = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(
        self, folder: Path, arrays: Mapping[str, jax.Array], then: Callable[[], object]
    ) -> None:
        """Copy arrays to the host and start to write them, after the write before has ended.

        Args:
            folder: where to, in an existing folder; every process calls this.
            arrays: by path. They may be overwritten once this returns.
            then: called on a thread once all processes have written.

        Raises:
            CheckpointWriteError: this write couldn't start, or the one before has failed.
        """
        self.wait()
        import orbax.checkpoint as ocp

        # Orbax has no empty arrays; the manifest knows their types.
        full = {name: _apart(array) for name, array in arrays.items() if array.size}
        with _write_errors(folder.parent):
            if self._orbax is None:
                self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
            self._orbax.save(folder.absolute(), args=ocp.args.PyTreeSave(full))
        self._thread = threading.Thread(
            target=self._finish, args=(folder.parent, then), name="jgraph-checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait for the write.

        Raises:
            CheckpointWriteError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for the write, and end Orbax's threads.

        Raises:
            CheckpointWriteError: it failed.
        """
        try:
            self.wait()
        finally:
            if self._orbax is not None:
                with contextlib.suppress(Exception):  # what failed was said by wait
                    self._orbax.close()
                self._orbax = None

    def _finish(self, folder: Path, then: Callable[[], object]) -> None:
        try:
            with _write_errors(folder):
                self._orbax.wait_until_finished()
                then()
        except Exception as error:  # noqa: BLE001  it is raised where somebody waits
            self._error = error


def read_arrays(folder: Path, types: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read arrays.

    Args:
        folder: what `Writer` wrote.
        types: `[dtype, shape]` of each array that it holds, by path.
    """
    import orbax.checkpoint as ocp

    empty = {n: np.zeros(shape, jnp.dtype(d)) for n, (d, shape) in types.items() if 0 in shape}
    wanted = {n: ocp.RestoreArgs(restore_type=np.ndarray) for n in types if n not in empty}
    if not wanted:
        return empty
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        args = ocp.args.PyTreeRestore(item=dict.fromkeys(wanted, 0), restore_args=wanted)
        found = reader.restore(folder.absolute(), args=args)
    return {name: np.asarray(array) for name, array in found.items()} | empty


def _apart(array: jax.Array) -> jax.Array:
    """Return an array that nobody overwrites while it is written.

    From other devices Orbax copies before it returns; a CPU's memory it takes as it lies.
    """
    on_cpu = all(device.platform == "cpu" for device in array.devices())
    return jnp.copy(array) if on_cpu else array


@contextlib.contextmanager
def _write_errors(folder: Path) -> Any:
    """Name what failed, and leave nothing of the folder."""
    try:
        yield
    except Exception as error:
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        reason = str(error).strip().splitlines()
        raise CheckpointWriteError(
            f"the checkpoint {folder} couldn't be written, earlier ones are as they were: "
            f"{reason[0] if reason else type(error).__name__}; make room, or choose another "
            "folder, and start again to go on from the one before"
        ) from error


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep Orbax's advice on other ways of restoring from the user's terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
