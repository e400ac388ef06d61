"""Standard input and output without blocking the event loop, be they terminals, pipes or files."""

from __future__ import annotations

import asyncio
import os
import sys
from types import TracebackType
from typing import Final

_CHUNK: Final = 262_144


class StandardInput:
    """Octets as they come; a terminal gives them line by line."""

    def __init__(self) -> None:
        self._descriptor = sys.stdin.fileno()
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._always_ready = False

    def __enter__(self) -> StandardInput:
        try:
            self._loop.add_reader(self._descriptor, self._is_ready)
        except PermissionError:  # epoll_ctl(2): a regular file or /dev/null, which never blocks
            self._always_ready = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._always_ready:
            self._loop.remove_reader(self._descriptor)

    async def read(self) -> bytes:
        """What there is; nothing at the end."""
        if not self._always_ready:
            self._ready.clear()
            self._loop.add_reader(self._descriptor, self._is_ready)
            await self._ready.wait()
        return os.read(self._descriptor, _CHUNK)

    def _is_ready(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._ready.set()


async def write_output(data: bytes) -> None:
    """Write to standard output in another thread, so that a slow reader of it stops this direction alone."""
    await asyncio.to_thread(_write_all, sys.stdout.fileno(), data)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
