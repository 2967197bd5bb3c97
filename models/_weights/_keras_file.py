"""Keras's weight files (.h5, .weights.h5, .keras), read without Keras and TensorFlow.

They are HDF5, in which a file can point into other files, claim more than it holds and name
filters that are loaded as code. Of all that, plain arrays alone are read: as many bytes as they
claim must lie in the file.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jgraph._errors import InputError, ModuleFormatError, UnsafeModuleError
from jgraph.models._weights._torch_file import MAX_BYTES

if TYPE_CHECKING:
    import h5py

_ARCHIVED = "model.weights.h5"
# Far more than any of our networks has; links can make a small file look endless.
_MOST_OBJECTS = 20_000
_DEEPEST = 12
# Layers that Keras named itself: by their class and a counter of the whole process.
_COUNTED = re.compile(r"(conv2d|depthwise_conv2d|batch_normalization|dense)(?:_(\d{1,9}))?")
# Keras 2 called the kernels of depthwise convolutions otherwise.
_RENAMED = {"depthwise_kernel": "kernel"}


class _BrokenFileError(Exception):
    """What is wrong with the file; `read_keras_file` adds its name."""


class _UnsafeFileError(Exception):
    """What the file points to or needs beyond plain arrays."""


def read_keras_file(
    path: str | os.PathLike[str], max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Read the weights of a Keras file: .h5 of Keras 1 to 3, .weights.h5 or .keras.

    Nothing of a model's description is read, so that no layer or function it names is made.
    Optimizer state is left out.

    Args:
        path: the file.
        max_bytes: the largest file that is read, in bytes; its arrays can't be larger.

    Returns:
        The weights by their names: `layer/variable` for .h5, where layers that Keras named
        itself are counted from 0 (`conv2d`, `conv2d_1`, …) in the order in which they were made;
        otherwise the path in the file, such as `layers/conv2d_1/vars/0`.

    Raises:
        InputError: there is no such file, or h5py is not installed.
        UnsafeModuleError: the file points to other files or needs a filter.
        ModuleFormatError: the file is broken, too large, or not one of Keras's.

    Source:
        The formats are those of keras/src/saving/saving_lib.py and
        keras/src/legacy/saving/legacy_h5_format.py.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights must be a file, there is none at {path}")
    hdf5 = _import_h5py(path)
    try:
        if path.stat().st_size > max_bytes:
            raise _BrokenFileError(f"it is larger than the limit of {max_bytes} bytes")
        data = path.read_bytes()
        if path.suffix == ".keras":
            data = _unpacked(data)
        # From memory: nothing can change between a check and the reading.
        with hdf5.File(io.BytesIO(data), "r") as file:
            return _read_file(file, len(data))
    except _UnsafeFileError as error:
        raise UnsafeModuleError(
            f"weights must be plain arrays, but {path} is something else: {error}; nothing "
            "outside it was read; save it again without that"
        ) from error
    # What h5py raises on broken files: there is no base class of its own.
    except (
        *(_BrokenFileError, OSError, RuntimeError, KeyError, ValueError, TypeError),
        *(AttributeError, OverflowError, MemoryError),
    ) as error:
        raise ModuleFormatError(
            f"weights must be a whole Keras file, but {path} cannot be read: {error}; fetch or "
            "save it again"
        ) from error


def _import_h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"the weights {path} are in HDF5, which needs the package h5py; run: "
            "pip install 'jgraph[keras]'"
        ) from error
    return h5py


def _unpacked(data: bytes) -> bytes:
    """Return the weights in a .keras archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [m for m in archive.infolist() if m.filename == _ARCHIVED]
            if len(members) != 1:
                raise _BrokenFileError(f"it holds {len(members)} {_ARCHIVED} instead of one")
            member = members[0]
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
                raise _BrokenFileError(f"its member {_ARCHIVED} is compressed")
            return archive.read(member)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _BrokenFileError(f"its zip archive is broken ({error})") from error


def _read_file(file: h5py.File, size: int) -> dict[str, np.ndarray]:
    walk = _Walk(size)
    if "layers" in file:
        arrays = walk.arrays(walk.group(file, "layers"), "layers/")
        found = _distinct((name, array) for name, array in arrays if "/vars/" in name)
    else:
        root = walk.group(file, "model_weights") if "model_weights" in file else file
        found = _distinct(_named_layers(walk, root))
    if not found:
        raise _BrokenFileError("it holds no weights of layers")
    return found


def _named_layers(walk: _Walk, root: h5py.Group) -> Iterator[tuple[str, np.ndarray]]:
    layers: dict[str, list[tuple[str, np.ndarray]]] = {}
    for path, array in walk.arrays(root, ""):
        layer, _, variable = path.partition("/")
        variable = variable.split("/")[-1].removesuffix(":0")
        layers.setdefault(layer, []).append((_RENAMED.get(variable, variable), array))
    names = _counted_anew(layers)
    return ((f"{names[k]}/{variable}", x) for k, arrays in layers.items() for variable, x in arrays)


def _counted_anew(layers: Iterable[str]) -> dict[str, str]:
    """Return names for layers, with those that Keras counted over a process counted from 0.

    The order of layers in the file is an attribute of strings that may all point to one long one;
    it isn't read, and the numbers say in which order the layers were made.
    """
    names = {layer: layer for layer in layers}
    matches = [match for layer in names if (match := _COUNTED.fullmatch(layer))]
    counts: Counter[str] = Counter()
    for match in sorted(matches, key=lambda match: int(match[2] or 0)):
        kind = match[1]
        names[match[0]] = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
    return names


def _distinct(arrays: Iterator[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, array in arrays:
        if name in found:
            raise _BrokenFileError(f"two of its weights are called {name}")
        found[name] = array
    return found


class _Walk:
    """Reads arrays as long as their bytes can all lie in the file."""

    def __init__(self, size: int) -> None:
        self.bytes_left = size
        self.objects_left = _MOST_OBJECTS

    def group(self, parent: h5py.Group, name: str) -> h5py.Group:
        """Return a group that is in the file itself."""
        import h5py

        found = self._open(parent, name)
        if not isinstance(found, h5py.Group):
            raise _BrokenFileError(f"its {name} is no group")
        return found

    def arrays(
        self, group: h5py.Group, prefix: str, depth: int = 0
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the arrays below a group by their paths."""
        import h5py

        if depth > _DEEPEST:
            raise _BrokenFileError(f"its groups are more than {_DEEPEST} deep")
        for name in map(str, group):
            found = self._open(group, name)
            if isinstance(found, h5py.Dataset):
                yield f"{prefix}{name}", self._read(found, f"{prefix}{name}")
            elif isinstance(found, h5py.Group):
                yield from self.arrays(found, f"{prefix}{name}/", depth + 1)
            else:
                raise _BrokenFileError(f"its {prefix}{name} is neither a group nor an array")

    def _open(self, parent: h5py.Group, name: str) -> Any:
        import h5py

        self.objects_left -= 1
        if self.objects_left < 0:
            raise _BrokenFileError(f"it has more than {_MOST_OBJECTS} groups and arrays")
        current = parent
        for part in name.split("/"):
            if not isinstance(current, h5py.Group):
                raise _BrokenFileError(f"it has no {name}")
            if not isinstance(current.get(part, getlink=True), h5py.HardLink):
                raise _UnsafeFileError(f"its {name} is a link to elsewhere")
            current = current[part]
        return current

    def _read(self, dataset: h5py.Dataset, name: str) -> np.ndarray:
        import h5py

        settings = dataset.id.get_create_plist()
        if settings.get_layout() == h5py.h5d.VIRTUAL or settings.get_external_count():
            raise _UnsafeFileError(f"its {name} lies in other files")
        if settings.get_nfilters():
            raise _UnsafeFileError(f"its {name} is compressed or filtered")
        if dataset.shape is None or dataset.dtype.kind not in "fiu":
            raise _BrokenFileError(f"its {name} is not an array of numbers")
        length = dataset.dtype.itemsize
        for side in dataset.shape:
            length *= side
        # Space that was never written takes none in the file, and reads as any number of zeros.
        if dataset.id.get_storage_size() < length:
            raise _BrokenFileError(f"its {name} is longer than what is stored of it")
        self.bytes_left -= length
        if self.bytes_left < 0:
            raise _BrokenFileError("its arrays are longer than the file")
        # Not np.ascontiguousarray, which would turn shape () into (1,).
        return np.array(dataset, dtype=dataset.dtype.newbyteorder("="), order="C")
