"""Loading: from a handle to a module that was checked."""

from __future__ import annotations

import os
from pathlib import Path

from jgraph._errors import ModuleIntegrityError, UntrustedProgramError
from jgraph._handles import Cache, Limits
from jgraph.hub._find import find_module
from jgraph.hub._format import check_no_others, read_module
from jgraph.hub._module import Module

_COMPILED = (".stablehlo", ".mlir", ".mlirbc")


def load(
    handle: str | os.PathLike[str], *, trust: bool = False, limits: Limits | None = None
) -> Module:
    """Load a module after checking every file in it; nothing in it is run as code.

    What isn't on this machine is fetched once into the cache, `JGRAPH_HUB_CACHE` or the user's
    cache folder, and checked anew at each load. `JGRAPH_HUB_OFFLINE=1` fetches nothing.

    Args:
        handle: the path of a module's folder or of its archive (.zip, .tar, .tar.gz);
            `pkg:PACKAGE/FILE`, one in an installed package; `https://…#sha256=…`, an archive;
            `hf:OWNER/NAME@REVISION`, a repository on the Hugging Face Hub, with a file where it
            holds an archive; or the name of a network with published weights.
        trust: load also what holds compiled programs, which can't be checked.
        limits: how much may be fetched and unpacked; None for 16 GiB.

    Raises:
        ModuleFormatError: (an InputError, as are all of these) no module, or one that breaks the
            format.
        ModuleIntegrityError: a file is missing, changed or too many; all of them are named.
        ModuleWeightsError: the weights differ from the manifest's list, or aren't finite.
        UnsafeModuleError: its archive is made to do harm, or it is larger than the limits.
        UntrustedProgramError: it holds compiled programs.
        ModuleFetchError: it can't be fetched.
        ModuleNotCachedError: it isn't in the cache, and nothing may be fetched while offline.

    Source:
        `hub.load`, TensorFlow Hub.

    Example:
        >>> from jgraph import hub
        >>> hub.load("eficientnet_lite0")
        Traceback (most recent call last):
        ...
        jgraph._errors.ModuleFormatError: there is no module 'eficientnet_lite0'; did you mean ...
    """
    folder = find_module(handle, limits or Limits())
    try:
        manifest, weights = read_module(folder)
        check_no_others(folder, manifest)
    except ModuleIntegrityError as error:
        entries = Cache().entries()
        kept = next((x.handle for x in entries if folder.is_relative_to(x.folder)), None)
        if kept is None:
            raise
        raise ModuleIntegrityError(
            f"{error}; it is in the cache: remove it, and it is made anew: jgraph hub cache "
            f"--remove '{kept}'"
        ) from error
    compiled = [name for name in manifest["files"] if name.endswith(_COMPILED)]
    if compiled and not trust:
        raise UntrustedProgramError(
            f"{Path(folder)} holds a compiled program, {compiled[0]}, which can't be checked; "
            "where you trust its publisher, pass trust=True"
        )
    return Module(folder, manifest, weights)
