"""Several processes become one program, and end together where one of them fails."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

import jax

from jgraph._errors import InputError

_VARIABLES = ("JGRAPH_COORDINATOR", "JGRAPH_NUM_PROCESSES", "JGRAPH_PROCESS_ID")
_COLLECTIVES = "jax_cpu_collectives_implementation"


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_secs: int = 30,
) -> None:
    """Join the other processes of this program, which call this too, before anything else.

    JAX finds them under SLURM, Open MPI, on TPU pods and in Kubernetes. Elsewhere the three
    arguments say where they are, or the environment: `JGRAPH_COORDINATOR` ("host:port" of process
    0), `JGRAPH_NUM_PROCESSES` and `JGRAPH_PROCESS_ID` (from 0), which `jgraph launch` sets. Where
    nothing is said and nothing found, the program is one process, and this does nothing: the same
    script runs on a laptop.

    From then on an error that nobody catches ends this process at once, after its traceback, and
    with it the others: they would wait for it otherwise.

    Args:
        coordinator: "host:port" of process 0.
        num_processes: how many there are. Given alone, it is what must be found.
        process_id: which one this is, from 0.
        heartbeat_secs: a process not heard of for so long ends all, at least 1.

    Raises:
        InputError: only some of the three are known, they are no numbers, or there is another
            number of processes than was said.
        RuntimeError: (from JAX) JAX has computed something already, or not all came in time.

    Example:
        The first lines of a script for many hosts, and for a laptop::

            import jgraph as jg

            jg.distribute.initialize()
    """
    if heartbeat_secs < 1:
        raise InputError(f"heartbeat_secs must be at least 1, got {heartbeat_secs}")
    asked = _from_environment(coordinator, num_processes, process_id)
    address, expected, number = asked
    if not _join(address, expected, number, heartbeat_secs):
        return
    count = jax.process_count()
    if expected is not None and count != expected:
        raise InputError(
            f"the program must be {expected} processes, and JAX found {count}: each would train "
            "by itself; check what starts them"
        )
    if count > 1:
        _end_at_errors()


def _collectives_in_order() -> None:
    """Have a CPU run one program after the other, as every process hands them over.

    Two that don't depend on each other would run at once, and their collectives wait for each
    other where the processes run them in another order.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _join(address: str | None, count: int | None, number: int | None, heartbeat: int) -> bool:
    """Initialize jax.distributed; return whether there was anything to join."""
    # The only collectives that CPUs have between processes.
    before = jax.config.values[_COLLECTIVES]
    jax.config.update(_COLLECTIVES, "gloo")
    known = None not in (address, count, number)
    try:
        jax.distributed.initialize(
            address,
            count if known else None,
            number,
            heartbeat_timeout_seconds=heartbeat,
            cluster_detection_method="deactivate" if known else None,
        )
    except ValueError as error:
        if known or "should be defined" not in str(error):
            raise
        # Without a client the collectives couldn't be made.
        jax.config.update(_COLLECTIVES, before)
        if count is not None and count > 1:
            raise InputError(
                f"the program must be {count} processes, and neither the environment "
                f"({', '.join(_VARIABLES)}) nor JAX says where the others are; start it with "
                f"jgraph launch --processes {count}, or by srun, mpirun, or on a TPU pod"
            ) from error
        return False
    _collectives_in_order()
    return True


def _from_environment(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str | None, int | None, int | None]:
    """Return the three, from the environment where they weren't given."""
    given = (coordinator, num_processes, process_id)
    texts = [os.environ.get(name) or None for name in _VARIABLES]
    address = coordinator or texts[0]
    count, number = (
        _whole(name, text) if value is None else value
        for name, text, value in zip(_VARIABLES[1:], texts[1:], given[1:], strict=True)
    )
    missing = [n for n, x in zip(_VARIABLES, (address, count, number), strict=True) if x is None]
    if missing and (address is not None or number is not None):
        raise InputError(
            f"{', '.join(_VARIABLES)} go together, or the arguments of their names; "
            f"missing: {', '.join(missing)}"
        )
    started = _whole(_VARIABLES[1], texts[1])
    if started is not None and count != started:
        raise InputError(
            f"the program must be {count} processes, and {_VARIABLES[1]} says that {started} were "
            f"started; start as many, as with jgraph launch --processes {count}"
        )
    if count is not None and number is not None and not 0 <= number < count:
        raise InputError(f"process_id must be from 0 to {count - 1}, got {number}")
    return address, count, number


def _whole(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} must be a whole number, got {text!r}") from None


def _end_at_errors() -> None:
    """Leave at once after an error: JAX would wait for the others, and they for this process."""
    show = sys.excepthook

    def show_and_leave(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> Any:
        try:
            show(kind, error, traceback)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(1)

    sys.excepthook = show_and_leave
