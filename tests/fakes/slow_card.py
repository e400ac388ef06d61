"""A card that stops answering when a test says so, and goes on when it says so."""

from __future__ import annotations

import threading

from vmtoken.iso7816.connection import CardConnection

_LONGEST = 60.0


class SlowCard:
    """Another card, which hangs in the middle of a command after so many more."""

    def __init__(self, card: CardConnection) -> None:
        self._card = card
        self._countdown = -1
        self._goes_on = threading.Event()
        self.hangs = threading.Event()
        """Set while a command hangs."""

    def hang(self, after: int = 0) -> None:
        """Hang at the next command, or at a later one."""
        self._goes_on.clear()
        self._countdown = after

    def go_on(self) -> None:
        self._goes_on.set()

    def transmit(self, command: bytes) -> bytes:
        if self._countdown == 0:
            self.hangs.set()
            self._goes_on.wait(_LONGEST)
            self.hangs.clear()
        self._countdown -= 1
        return self._card.transmit(command)

    def reset(self) -> None:
        self._card.reset()

    def close(self) -> None:
        self._card.close()
