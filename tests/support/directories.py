"""Directories for sockets, whose paths have 107 octets at most; pytest's own are longer."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path


def short_directory() -> Path:
    """A new directory with a short path; gone, whatever is in it, when the tests end."""
    path = Path(tempfile.mkdtemp(prefix="vmtoken-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
