"""Loading: from a handle to a module that was checked."""

from __future__ import annotations

import os
from pathlib import Path

from jgraph.hub._format import read_module
from jgraph.hub._module import Module


def load(handle: str | os.PathLike[str]) -> Module:
    """Load a module after checking every file in it; nothing in it is run as code.

    Args:
        handle: the folder of a module.

    Raises:
        ModuleFormatError: (an InputError) no module, or one that breaks the format.
        ModuleIntegrityError: a file is missing or changed; all of them are named.
        ModuleWeightsError: the weights differ from the manifest's list, or aren't finite.
    """
    folder = Path(handle).expanduser()
    return Module(folder, *read_module(folder))
