"""Cards that are in use: an EAP-TLS card by one token, a PIV card by one for each of its keys."""

from __future__ import annotations

import contextlib
import threading
from typing import Final

from dom0_broker.backends.pcsc.connection import PcscConnection
from dom0_broker.backends.pcsc.daemon import Pcscd
from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.status import StatusWord

_LONGEST_TURN: Final = 60.0
"""Seconds to wait for others of us; a key pair takes half of that on a slow card."""


_PIN_COMMANDS: Final = frozenset({0x20, 0x24, 0x2C})
"""INS of VERIFY, CHANGE REFERENCE DATA, RESET RETRY COUNTER."""

_HEADER: Final = 5
"""Octets of CLA INS P1 P2 Le or Lc."""


class SharedConnection:
    """A `CardConnection` to a card that others of us may use too, in turns.

    Whoever has APDUs that belong together, such as a PIN and the signature behind it, holds the card
    meanwhile.
    """

    def __init__(self, card: SharedCard) -> None:
        self._card = card
        self._closed = False
        self._holds = False
        self.t0 = card.connection.t0
        self.extended = card.connection.extended
        self.reader = card.connection.reader

    def hold(self) -> None:
        """Wait for the card, and have it until `release` or `close`. Raises `TokenUnavailable`."""
        if not self._holds:
            if not self._card.turn.acquire(timeout=_LONGEST_TURN):
                raise TokenUnavailable(
                    f"The card in the reader '{self.reader}' is busy for another of its keys; try again.",
                    retry_after=1.0,
                )
            self._holds = True

    def release(self) -> None:
        """Let the others have it. May be called twice."""
        if self._holds:
            self._holds = False
            self._card.turn.release()

    def transmit(self, command: bytes) -> bytes:
        """See `CardConnection.transmit`."""
        if self._closed:
            raise TokenUnavailable(f"The card in the reader '{self.reader}' was given back already.")
        response = self._card.connection.transmit(command)
        if _refuses_pin(command, response):  # others of us may have the same PIN in memory
            problem = f"The card in the reader '{self.reader}' refused a PIN; it is opened anew."
            self._card.connection.fail(TokenUnavailable(problem, retry_after=0.1))
        return response

    def reset(self) -> None:
        """See `CardConnection.reset`; the others have to begin anew."""
        self._card.connection.reset()

    def close(self) -> None:
        """See `CardConnection.close`; the last one closes the door."""
        if not self._closed:
            self._closed = True
            self._card.leave()
        self.release()


class SharedCard:
    """A card and how many use it."""

    def __init__(self, table: CardTable, daemon: Pcscd, connection: PcscConnection, *, single: bool) -> None:
        self._table = table
        self._daemon = daemon
        self._users = 0
        self._lock = threading.Lock()
        self.is_single = single
        self.connection = connection
        self.turn = threading.Lock()

    def join(self) -> SharedConnection:
        """One user more; to be called in the reader's turn."""
        with self._lock:
            self._users += 1
        return SharedConnection(self)

    def leave(self) -> None:
        """One user less."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(TokenUnavailable):  # it hangs: there is nothing to wait for
                stack.enter_context(self._daemon.turn(self.connection.reader))
            with self._lock:
                self._users -= 1
                is_last = self._users == 0
            if is_last:
                self._table.drop(self._daemon, self)
                self.connection.close()


class CardTable:
    """Which card of ours is in which reader."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cards: dict[tuple[Pcscd, str], SharedCard] = {}

    def borrow(self, daemon: Pcscd, reader: str, *, single: bool) -> SharedConnection:
        """A card for one user more, or for a `single` one. Raises `TokenUnavailable`."""
        with daemon.turn(reader):
            with self._lock:
                card = self._cards.get((daemon, reader))
            if card is not None and card.connection.is_broken:
                card.connection.close()
            elif card is not None:
                if single or card.is_single:
                    raise TokenUnavailable(
                        f"The card in the reader '{reader}' is in use by another token or command of this "
                        "broker; it serves one at a time.",
                        retry_after=1.0,
                    )
                return card.join()
            card = SharedCard(self, daemon, daemon.connect(reader), single=single)
            with self._lock:
                self._cards[daemon, reader] = card
            return card.join()

    def drop(self, daemon: Pcscd, card: SharedCard) -> None:
        """Nobody uses it any more."""
        key = daemon, card.connection.reader
        with self._lock:
            if self._cards.get(key) is card:
                del self._cards[key]


def _refuses_pin(command: bytes, response: bytes) -> bool:
    """Whether a PIN was given and compared in vain (ISO/IEC 7816-4 section 11.6); without data none was."""
    refused = StatusWord(int.from_bytes(response[-2:], "big")).retries_left is not None
    return refused and command[1] in _PIN_COMMANDS and len(command) > _HEADER
