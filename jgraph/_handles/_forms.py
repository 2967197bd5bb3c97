"""The forms of handles, taken apart."""

from __future__ import annotations

import dataclasses
import os
import re
import urllib.parse
from pathlib import Path
from typing import TypeAlias

from jgraph._errors import InputError

FORMS = """\
  a path                              of a module's folder, or of its archive: .zip, .tar, .tar.gz
  pkg:PACKAGE/FILE                    in an installed package
  https://…#sha256=…                  an archive, with the SHA-256 that it must have
  hf:OWNER/NAME@REVISION/FILE         on the Hugging Face Hub; a revision and a file as needed"""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?!\\)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_FILE = re.compile(rf"{_PART}(/{_PART})*")
_HUGGING_FACE = re.compile(rf"({_PART}/{_PART})(?:@([^/@\s]+))?(?:/(.+))?")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class LocalHandle:
    """A path."""

    path: Path


@dataclasses.dataclass(frozen=True)
class PackageHandle:
    """A file or folder in an installed package; no file, and it has only one that fits."""

    package: str
    file: str = ""


@dataclasses.dataclass(frozen=True)
class UrlHandle:
    """A file on a server, and its SHA-256."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name, and nothing that can't be one."""
        last = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path).rpartition("/")[2]
        return last if _FILE.fullmatch(last) and len(last) <= 100 else "download"

    def __str__(self) -> str:
        """The handle without its query, which may hold a key."""
        shown = urllib.parse.urlsplit(self.url)._replace(query="").geturl()
        return f"{shown}#sha256={self.sha256}"


@dataclasses.dataclass(frozen=True)
class HuggingFaceHandle:
    """A repository on the Hugging Face Hub at a revision, or one file of it."""

    repository: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"hf:{self.repository}@{urllib.parse.quote(self.revision, safe='')}{file}"


Handle: TypeAlias = LocalHandle | PackageHandle | UrlHandle | HuggingFaceHandle


def parse_handle(handle: str | os.PathLike[str]) -> Handle:
    """Take a handle apart; nothing is looked up.

    Raises:
        InputError: it has none of the forms, which the message lists, or its parts can't be.

    Example:
        >>> parse_handle("hf:timm/inception_v3.tv_in1k@v1/model.safetensors").file
        'model.safetensors'
    """
    if not isinstance(handle, str):
        return LocalHandle(Path(handle).expanduser())
    scheme = _SCHEME.match(handle)
    kind = scheme[1].lower() if scheme else ""
    if kind == "pkg":
        return _package(handle)
    if kind in ("http", "https"):
        return _url(handle)
    if kind == "hf":
        return _hugging_face(handle)
    if kind and handle[len(kind) :].startswith("://"):
        raise InputError(
            f"a handle must have one of these forms, got {handle!r}; a module at such a place is "
            f"fetched by jg.hub.pull({handle!r}, FOLDER):\n{FORMS}"
        )
    if not handle:
        raise InputError(f"a handle must have one of these forms, got none:\n{FORMS}")
    return LocalHandle(Path(handle).expanduser())


def check_url(url: str) -> None:
    """Refuse what isn't `https`: others on the way could read and change it.

    Raises:
        InputError: it is another scheme, or there is a password in it.
    """
    parts = urllib.parse.urlsplit(url)
    is_local = parts.scheme == "http" and parts.hostname in _LOOPBACK
    if not parts.hostname or not (parts.scheme == "https" or is_local):
        raise InputError(f"what is fetched must be at https://…, got {url.partition('?')[0]!r}")
    if parts.username is not None or parts.password is not None:
        raise InputError(f"a URL must be without a name and password, got one of {parts.hostname}")


def _package(handle: str) -> PackageHandle:
    package, _, file = handle[len("pkg:") :].partition("/")
    if file and not _FILE.fullmatch(file):
        raise InputError(
            f"pkg:PACKAGE/FILE must name a file below the package, got {file!r} in {handle!r}"
        )
    return PackageHandle(package, file)


def _url(handle: str) -> UrlHandle:
    url, _, fragment = handle.partition("#")
    try:
        check_url(url)
    except ValueError as error:
        raise InputError(str(error)) from None
    sha256 = fragment.removeprefix("sha256=").lower()
    if not fragment.startswith("sha256=") or not _SHA256.fullmatch(sha256):
        raise InputError(
            f"https://…#sha256=… must end in the 64 digits of its SHA-256, got "
            f"{fragment or 'none'!r}; its publisher says which (sha256sum FILE prints it)"
        )
    return UrlHandle(url, sha256)


def _hugging_face(handle: str) -> HuggingFaceHandle:
    match = _HUGGING_FACE.fullmatch(handle[len("hf:") :])
    if not match or (match[3] and not _FILE.fullmatch(match[3])):
        raise InputError(
            f"hf: must be hf:OWNER/NAME, @REVISION and /FILE as needed, got {handle!r}"
        )
    return HuggingFaceHandle(match[1], urllib.parse.unquote(match[2] or "main"), match[3] or "")
