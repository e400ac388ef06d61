"""From backends, whose threads see cards come and go, to the tokens, which belong to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

_TOGETHER: Final = 0.05
"""Seconds within which changes count as one: a card that comes is seen, read and opened."""


class CardEvents:
    """Calls `look` in the event loop that it is made in, for each scheme whose tokens changed."""

    def __init__(self, look: Callable[[str], None]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def changed(self, scheme: str) -> None:
        """Tokens of a scheme came or went; to be called in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody has tokens any more
            self._loop.call_soon_threadsafe(self._plan, scheme)

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()

    def _plan(self, scheme: str) -> None:
        if scheme not in self._timers and not self._closed:
            self._timers[scheme] = self._loop.call_later(_TOGETHER, self._look_now, scheme)

    def _look_now(self, scheme: str) -> None:
        del self._timers[scheme]
        self._look(scheme)
