"""Metrics in a file for the textfile collector of node_exporter, since the broker needs no network.

The collector reads `*.prom` files of a directory at each scrape; a file that is replaced in one step is never
seen half written, and its modification time says how old it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from dom0_broker.metrics import Snapshot, exposition

log = logging.getLogger(__name__)

_MODE = 0o644
"""node_exporter is another user; there are no secrets in it."""


class Textfile:
    """Writes a file until `run` is cancelled, then takes it away: a broker that stopped has no metrics."""

    def __init__(self, path: Path, interval: float, snapshot: Callable[[], Snapshot]) -> None:
        self._path = path
        self._interval = interval
        self._snapshot = snapshot
        self._trouble = ""

    async def run(self) -> None:
        """Write every `interval` seconds. What cannot be written is said once, and tried again."""
        try:
            while True:
                await self.write()
                await asyncio.sleep(self._interval)
        finally:
            with contextlib.suppress(OSError):
                self._path.unlink()

    async def write(self) -> None:
        """Write it now."""
        snapshot = self._snapshot()
        try:
            await asyncio.to_thread(lambda: _replace(self._path, exposition(snapshot)))
        except OSError as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                log.error("metrics cannot be written", extra={"because": self._trouble})  # noqa: TRY400
        else:
            self._trouble = ""


def _replace(path: Path, octets: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # the collector reads *.prom only
    try:
        with open(temporary, "wb") as file:
            os.fchmod(file.fileno(), _MODE)
            file.write(octets)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
