"""Keys and PINs in memory must not reach a disk."""

from __future__ import annotations

import ctypes
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4
"""prctl(2)."""


def forbid_core_dumps() -> None:
    """For this process, whatever happens; its memory cannot be read by its own user's debuggers either."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(
        _PR_SET_DUMPABLE, 0, 0, 0, 0
    )  # a core_pattern with a pipe ignores the limit, core(5)
