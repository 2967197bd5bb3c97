"""What callers use: a traced program drawn into a file, or told in a table."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from jax.extend.core import ClosedJaxpr

from jgraph._errors import InputError
from jgraph.graph._ops import Program, program_of
from jgraph.graph._picture._facts import Port
from jgraph.graph._picture._html import page
from jgraph.graph._picture._svg import svg
from jgraph.graph._picture._text import table
from jgraph.graph._picture._tree import tree_of
from jgraph.graph._picture._view import View, view_of

_FORMATS = {".svg": svg, ".html": page}


def _ports(given: Sequence[Port | str] | None, count: int, kind: str) -> list[Port]:
    if given is None:
        return [Port(kind if count == 1 else f"{kind} {k}") for k in range(count)]
    ports = [Port(port) if isinstance(port, str) else port for port in given]
    if len(ports) != count:
        raise InputError(
            f"the program has {count} {kind}s, but {len(ports)} names came: give one for each"
        )
    return ports


def _view(
    program: ClosedJaxpr | Program,
    inputs: Sequence[Port | str] | None,
    outputs: Sequence[Port | str] | None,
    title: str,
) -> View:
    if not isinstance(program, Program):
        program = program_of(program)
    ins = _ports(inputs, len(program.inputs), "input")
    outs = _ports(outputs, len(program.outputs), "output")
    return view_of(tree_of(program, ins, outs, title))


def draw(
    program: ClosedJaxpr | Program,
    path: str | os.PathLike[str],
    *,
    title: str = "Graph",
    inputs: Sequence[Port | str] | None = None,
    outputs: Sequence[Port | str] | None = None,
) -> None:
    """Draw a traced program: nested by module, repeats merged, cost as heat, skips as curves.

    The backward pass of a training step stands in the modules it belongs to, its update is one box.

    Args:
        program: what `jax.make_jaxpr` returns, or `program_of` made of it.
        path: file to write: ".svg" for a still picture, ".html" for a page whose modules open.
        title: written above the picture.
        inputs: what the program's inputs are called, one for each; state
            (`Port(name, is_state=True)`) isn't drawn, and counted for the modules that read it
            where it is a parameter (`is_param=True`).
        outputs: the same of its outputs.

    Raises:
        InputError: the path has another ending or is in no folder, or the number of names is not
            that of the ends.

    Example:
        >>> import jax, jax.numpy as jnp, tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp(), "net.svg")
        >>> draw(jax.make_jaxpr(jnp.tanh)(jnp.ones(3)), file, inputs=["x"], outputs=["y"])
        >>> file.read_text().startswith("<svg")
        True
    """
    file = pathlib.Path(path)
    render = _FORMATS.get(file.suffix.lower())
    if render is None:
        raise InputError(f"a picture is written as .svg or .html, not as {file.name!r}")
    if not file.parent.is_dir():
        raise InputError(f"the picture's folder must exist, and {file.parent} doesn't")
    file.write_text(render(_view(program, inputs, outputs, title), title), "utf-8", newline="\n")


def text(
    program: ClosedJaxpr | Program,
    *,
    inputs: Sequence[Port | str] | None = None,
    outputs: Sequence[Port | str] | None = None,
    depth: int | None = None,
) -> str:
    """Return a traced program as an indented table for a terminal.

    Args:
        program: what `jax.make_jaxpr` returns, or `program_of` made of it.
        inputs: names of the program's inputs, as for `draw`.
        outputs: names of its outputs.
        depth: how many levels of modules; None for all.

    Returns:
        The table: name, type made, parameters, FLOPs and their share, source line; then the total.

    Raises:
        InputError: the number of names is not that of the ends.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def net(x):
        ...     with jax.named_scope("net"):
        ...         return jnp.tanh(x @ x)
        >>> print(text(jax.make_jaxpr(net)(jnp.ones((4, 4)))).splitlines()[-1].split())
        ['total', '144', '100', '%']
    """
    return table(_view(program, inputs, outputs, ""), depth)
