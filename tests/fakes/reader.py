"""A reader with one software card in it, as the PC/SC backend sees one: tokens of the card share it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from dom0_broker.backends.pcsc.connection import PcscConnection
from dom0_broker.backends.pcsc.messages import Connected
from dom0_broker.backends.pcsc.sharing import CardTable, SharedConnection
from dom0_broker.backends.software.element import SoftwareElement


class FakeReader:
    """Stands for the pcscd too. `insert` gives the card as after a reset; `line` is what is between."""

    def __init__(
        self,
        insert: Callable[[], SoftwareElement],
        line: Callable[[Callable[[bytes], bytes]], Callable[[bytes], bytes]] = lambda transmit: transmit,
    ) -> None:
        self._insert = insert
        self._line = line
        self._turn = threading.RLock()
        self._table = CardTable()
        self._element: SoftwareElement | None = None

    def borrow(self) -> SharedConnection:
        """The card for one use more, held."""
        connection = self._table.borrow(self, "reader", single=False)  # type: ignore[arg-type]
        connection.hold()
        return connection

    def turn(self, reader: str) -> AbstractContextManager[Any]:
        return self._turn

    def connect(self, reader: str) -> PcscConnection:
        self._element = self._insert()
        return PcscConnection(self, 1, reader, Connected(bytes.fromhex("3B00"), t0=False))

    def transmit(self, session: int, reader: str, command: bytes) -> bytes:
        assert self._element is not None
        return self._line(self._element.transmit)(command)

    def reset(self, session: int, reader: str) -> None:
        assert self._element is not None
        self._element.reset()

    def disconnect(self, session: int, reader: str, *, reset: bool) -> None:
        assert self._element is not None
        self._element.close()
