"""Downloads: checked by their SHA-256, bounded in size and time, and gone on with after a cut."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any, NoReturn

from jgraph._errors import InputError, ModuleFetchError, ModuleIntegrityError, UnsafeModuleError
from jgraph._handles._forms import UrlHandle, check_url
from jgraph._handles._limits import Limits
from jgraph._version import __version__

_ATTEMPTS = 4  # without a single byte between them
_WAIT_SECONDS = 1.0
_SOCKET_SECONDS = 30.0
_CHUNK = 1 << 18
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_REFUSED = (401, 403)
_NETWORK = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
_RANGE_IS_WRONG = 416


class _CutError(Exception):
    """The connection failed in a way that another attempt may not."""


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows to https only."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before = urllib.parse.urlsplit(req.full_url).scheme
        try:
            check_url(newurl)
            if before == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
                raise InputError("what is fetched must be at https://…")
        except ValueError as error:
            raise ModuleFetchError(f"{_shown(req.full_url)} leads elsewhere: {error}") from None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(handle: UrlHandle, target: Path, limits: Limits) -> None:
    """Fetch a file, going on with what is at the target from an earlier attempt.

    Args:
        handle: where it is, and its SHA-256.
        target: the file to write. After a cut it holds what has come so far, for the next call.
        limits: of size and time.

    Raises:
        ModuleFetchError: it isn't there, is refused, or can't be reached.
        ModuleIntegrityError: it is another file; nothing of it is left.
        UnsafeModuleError: it is larger than the limits.
    """
    had = _length(target)
    _fetch_all(handle, target, limits)
    found = sha256_of(target)
    if found != handle.sha256 and had:  # what was there may have been of another file
        target.unlink()
        _fetch_all(handle, target, limits)
        found = sha256_of(target)
    _validator(target).unlink(missing_ok=True)
    if found != handle.sha256:
        target.unlink()
        raise ModuleIntegrityError(
            f"{_shown(handle.url)} must have the SHA-256 {handle.sha256}, got {found}; it isn't "
            "the file that the handle was made for: ask its publisher"
        )


def _fetch_all(handle: UrlHandle, target: Path, limits: Limits) -> None:
    deadline = time.monotonic() + limits.seconds
    failures = 0
    while True:
        before = _length(target)
        try:
            _fetch(handle.url, target, limits, deadline)
            return
        except UnsafeModuleError:
            target.unlink(missing_ok=True)
            raise
        except _CutError as error:
            failures = 0 if _length(target) > before else failures + 1
            if failures >= _ATTEMPTS or time.monotonic() > deadline:
                raise ModuleFetchError(
                    f"{_shown(handle.url)} can't be fetched: {error}; what has come is kept, so "
                    "try again later"
                ) from error
        time.sleep(_WAIT_SECONDS * failures)


def _fetch(url: str, target: Path, limits: Limits, deadline: float) -> None:
    """Append to the target what it lacks.

    Raises:
        _CutError: another attempt may go on.
    """
    start = _length(target)
    headers = {"User-Agent": f"jgraph/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if _validator(target).is_file():
            headers["If-Range"] = _validator(target).read_text("utf-8")
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(_Redirect)
    total = None
    try:
        with opener.open(request, timeout=_SOCKET_SECONDS) as answer:
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                start = 0
            elif not _starts_at(answer, start):
                target.unlink(missing_ok=True)
                raise _CutError("the server sent another part than it was asked for")
            length = answer.headers.get("Content-Length", "")
            if length.isdecimal():
                total = start + int(length)
                limits.check_bytes(total, _shown(url))
            _keep_validator(target, answer)
            with target.open("ab" if start else "wb") as file:
                _copy(answer, file, url, limits, deadline)
    except urllib.error.HTTPError as error:
        error.close()
        _refuse(url, error.code, target)
    except _NETWORK as error:  # and not the disk's errors
        raise _CutError(getattr(error, "reason", None) or error) from error
    if total is not None and _length(target) != total:
        raise _CutError(f"the connection ended after {_length(target)} of {total} bytes")


def _copy(answer: Any, file: IO[bytes], url: str, limits: Limits, deadline: float) -> None:
    while chunk := answer.read1(_CHUNK):
        file.write(chunk)
        limits.check_bytes(file.tell(), _shown(url))
        if time.monotonic() > deadline:
            raise _CutError(f"it took longer than {limits.seconds:g} seconds")


def _refuse(url: str, status: int, target: Path) -> NoReturn:
    if status == _RANGE_IS_WRONG:
        target.unlink(missing_ok=True)
        raise _CutError("the server's file is shorter than what was fetched before")
    if status in _AGAIN:
        raise _CutError(f"the server answers {status} {http.client.responses.get(status, '')}")
    advice = "check the address, and ask its publisher"
    if status in _REFUSED:
        advice = "it isn't public: download it yourself, and give its path"
    reason = http.client.responses.get(status, "")
    raise ModuleFetchError(f"{_shown(url)} can't be fetched, {status} {reason}; {advice}")


def _starts_at(answer: Any, start: int) -> bool:
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == start


def _keep_validator(target: Path, answer: Any) -> None:
    """Keep what says that a later part is of the same file."""
    etag = answer.headers.get("ETag", "")
    if etag.startswith('"') and len(etag) < 200:  # a weak one doesn't say so
        _validator(target).write_text(etag, "utf-8")
    else:
        _validator(target).unlink(missing_ok=True)


def _validator(target: Path) -> Path:
    return target.with_name(f"{target.name}.etag")


def _shown(url: str) -> str:
    return url.partition("?")[0]


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
