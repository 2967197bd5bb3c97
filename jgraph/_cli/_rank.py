"""`python -m jgraph._cli._rank PIPE SCRIPT …`: one process of `jgraph launch`.

A script that fails, or exits with another code than 0, leaves at once: JAX would keep its process
for the others to come to the end, and they wait for it. Before, it writes the time into the pipe:
the others fail as its connections close, and may be gone before it is.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import time
import traceback
from pathlib import Path


def run_script(pipe: int, script: str, arguments: list[str]) -> None:
    """Run a script as `python SCRIPT …` does."""
    os.set_inheritable(pipe, False)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        code = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
        if code:
            _leave(pipe, code)
    except BaseException as error:  # noqa: BLE001  it is shown, and ends the process
        _say_alone("hadn't called jgraph.distribute.initialize() yet")
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_filename != script:
            frame = frame.tb_next  # what is below runs the script
        traceback.print_exception(type(error), error, frame or error.__traceback__)
        _leave(pipe, 1)
    _say_alone("never called jgraph.distribute.initialize()")


def _say_alone(reason: str) -> None:
    jax = sys.modules.get("jax")  # for the script to import, after what it sets before
    joined = jax is not None and jax.distributed.is_initialized()
    if int(os.environ["JGRAPH_NUM_PROCESSES"]) > 1 and not joined:
        print(
            f"jgraph: the script {reason}, so this process ran all of it by itself",
            file=sys.stderr,
        )


def _leave(pipe: int, code: int) -> None:
    with contextlib.suppress(OSError):  # the launcher was killed
        os.write(pipe, str(time.monotonic()).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_script(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
