"""Files on the Hugging Face Hub, by its own library: its cache, its tokens, its offline mode."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from jgraph._errors import InputError, ModuleFetchError, ModuleNotCachedError
from jgraph._handles._cache import is_offline
from jgraph._handles._forms import HuggingFaceHandle
from jgraph._handles._limits import Limits
from jgraph._suggest import did_you_mean

_BEST = "model.safetensors"


class RemoteFile(NamedTuple):
    """A file of a repository at a commit."""

    name: str
    commit: str
    bytes: int


class HuggingFace:
    """One repository at a revision.

    Nothing is fetched twice: the library keeps it in its own cache, `HF_HOME`.

    Raises:
        InputError: huggingface_hub isn't installed.
    """

    def __init__(self, handle: HuggingFaceHandle, limits: Limits) -> None:
        self._hub = huggingface_hub()
        self._handle, self._limits = handle, limits
        self._offline = is_offline() or self._hub.constants.HF_HUB_OFFLINE

    def look(self, name: str, commit: str | None = None) -> RemoteFile:
        """Return what is known of a file, without fetching it.

        Raises:
            ModuleFetchError: it isn't there, is refused, or can't be reached.
            ModuleNotCachedError: it isn't in the cache, and the hub is offline.
            UnsafeModuleError: it is larger than the limits.
        """
        revision = commit or self._handle.revision
        with self._named_errors(name):
            found = self._hub.hf_hub_download(
                self._handle.repository,
                name,
                revision=revision,
                local_files_only=self._offline,
                dry_run=True,
            )
        size = found.file_size or 0
        self._limits.check_bytes(size, f"{name} of hf:{self._handle.repository}")
        return RemoteFile(name, found.commit_hash, size)

    def fetch(self, file: RemoteFile) -> Path:
        """Return the path of a file that was looked at, fetched if need be; it may be a link.

        Raises:
            ModuleFetchError: it can't be fetched.
        """
        with self._named_errors(file.name):
            path = self._hub.hf_hub_download(
                self._handle.repository,
                file.name,
                revision=file.commit,
                local_files_only=self._offline,
            )
        return Path(path)

    def only_file(self, suffixes: Sequence[str]) -> str:
        """Return the name of the repository's weight file.

        Raises:
            InputError: there are none or several.
        """
        if self._offline:
            return _BEST  # which is all that can be looked for without a listing
        with self._named_errors("its list of files"):
            names = self._hub.HfApi().list_repo_files(
                self._handle.repository, revision=self._handle.revision
            )
        fitting = sorted(name for name in names if name.endswith(tuple(suffixes)))
        if _BEST in fitting:
            return _BEST
        if len(fitting) != 1:
            raise InputError(
                f"{self._handle} must have one weight file, got {', '.join(fitting[:8]) or 'none'};"
                f" name one: {self._handle}/FILE"
            )
        return fitting[0]

    @contextlib.contextmanager
    def _named_errors(self, name: str) -> Iterator[None]:
        """Turn the library's errors into ours."""
        errors = self._hub.errors
        what = f"{name} of hf:{self._handle.repository}@{self._handle.revision}"
        try:
            yield
        except errors.HFValidationError as error:
            raise InputError(f"{self._handle} can't be a repository: {error}") from error
        except errors.RevisionNotFoundError as error:
            raise ModuleFetchError(
                f"hf:{self._handle.repository} has no revision {self._handle.revision!r}"
                f"{did_you_mean(self._handle.revision, ['main'])}"
            ) from error
        except errors.GatedRepoError as error:
            raise ModuleFetchError(
                f"{what} is for those who have accepted its terms; do so on its page, then log "
                "in: hf auth login, or set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ModuleFetchError(
                f"there is no repository hf:{self._handle.repository}, or it is private: check "
                "its name, and log in: hf auth login, or set HF_TOKEN"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            if self._offline:
                raise ModuleNotCachedError(
                    f"{what} isn't in the cache {self._hub.constants.HF_HUB_CACHE}, and "
                    "HF_HUB_OFFLINE or JGRAPH_HUB_OFFLINE is set; fetch it once online"
                ) from error
            cause = error.__cause__ or error
            raise ModuleFetchError(f"{what} can't be fetched: {_first_line(cause)}") from error
        except errors.EntryNotFoundError as error:
            raise ModuleFetchError(f"there is no {what}") from error
        except (errors.HTTPError, OSError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's
            raise ModuleFetchError(f"{what} can't be fetched: {_first_line(error)}") from error


def huggingface_hub() -> ModuleType:
    """Return huggingface_hub.

    Raises:
        InputError: it isn't installed.
    """
    try:
        found = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.constants")
        importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise InputError(
            "hf: needs the package huggingface_hub; run: pip install 'jgraph[hf]'"
        ) from error
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
