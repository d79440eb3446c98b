"""Bytes that are read from any place, without being a file of this machine."""

from __future__ import annotations

import errno
import io
import os


class RandomAccess(io.RawIOBase):
    """A read-only stream of known length with a position, as `open(..., "rb")` gives it; a subclass has `read`.

    Attributes:
        size: bytes of all of it.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place; beyond the end there is nothing to read.

        Raises:
            OSError: before the start, as files do; readers of foreign formats try it on what is too short for them.
        """
        to = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if to < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = to
        return to
