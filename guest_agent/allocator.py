"""Keep freed memory for the next message.

A tunnel moves data in blocks of 256 KiB, and each goes through a handful of buffers. By default
glibc gives such blocks back to the kernel and gets them again page by page, zeroed: that costs
more than encrypting them (measured: half of the throughput).
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_LARGEST_BLOCK: Final = 32 << 20
"""Octets up to which blocks come from the heap; glibc takes no more for M_MMAP_THRESHOLD (mallopt(3))."""

_KEPT: Final = 64 << 20
"""Octets of free heap that are kept: some two hundred messages."""


def keep_freed_blocks() -> None:
    """Tune malloc for this process; nothing where the C library has no `mallopt`."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
