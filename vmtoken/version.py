"""The version of what runs: that of the Debian package, where it comes from one."""

from __future__ import annotations

from importlib import metadata
from typing import Final

VERSION: Final = metadata.version("vmtoken")
"""Read when the process starts: a daemon keeps its own when a newer one is installed under it."""
