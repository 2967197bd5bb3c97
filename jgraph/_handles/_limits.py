"""How much may be fetched and unpacked."""

from __future__ import annotations

import dataclasses

from jgraph._errors import UnsafeModuleError


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much may be fetched and unpacked for one handle.

    Args:
        bytes: of all its files together.
        files: their number.
        seconds: a download from `https://…` may take.

    Example:
        >>> Limits().bytes >> 30
        16
    """

    bytes: int = 16 << 30
    files: int = 2000
    seconds: float = 3600.0

    def check_bytes(self, found: int, what: str) -> None:
        """Refuse what is larger.

        Raises:
            UnsafeModuleError: it says how large it is.
        """
        if found > self.bytes:
            raise UnsafeModuleError(
                f"{what} must have at most {self.bytes} bytes, got {found} or more; where you "
                "trust it, pass larger limits: limits=jg.hub.Limits(bytes=…)"
            )
