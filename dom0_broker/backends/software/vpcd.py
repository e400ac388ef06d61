"""A card in a slot of a virtual reader: the card's side of the protocol of vpcd (vsmartcard).

Before every message there are two octets with its length, big-endian, both ways. A message of one octet
steers the card (power off, power on, reset: no answer; GET ATR: answered, and asked for all the time);
any other is a command APDU.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final

from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.connection import CardConnection

DEFAULT_PORT: Final = 0x8C7B
"""Of the first slot of Debian's vsmartcard-vpcd; the second slot has the next one."""

_POWER_OFF, _POWER_ON, _RESET, _GET_ATR = b"\x00", b"\x01", b"\x02", b"\x04"
_LENGTH_OCTETS = 2
_MAX_MESSAGE = (1 << 16) - 1

_FIRST_WORD = 5.0
"""Seconds for pcscd to take a card and to power it up; it looks every 0.4 seconds."""


class VirtualCard:
    """One insertion of a card into a slot, played by one thread and ended by any."""

    def __init__(
        self, card: CardConnection, atr: bytes, port: int = DEFAULT_PORT, *, host: str = "127.0.0.1"
    ) -> None:
        """`card` is used by the thread that plays; `atr` is its answer to reset."""
        self._card = card
        self._atr = atr
        self._address = (host, port)
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._removed = False
        self._powered: Callable[[], None] | None = None

    @property
    def slot(self) -> str:
        """Where it belongs, for people."""
        return "{}:{}".format(*self._address)

    def play(self, powered: Callable[[], None] = lambda: None) -> None:
        """Put the card in and answer until it is taken out, or the reader is gone; it has no power then.

        `powered` is called when the reader has powered it up the first time: programs see it from then on.
        Raises `TokenUnavailable` without a reader, or when another card is in its slot.
        """
        self._powered = powered
        with self._inserted() as link:
            with self._lock:
                if self._removed:
                    return
                self._link = link
            try:
                self._answer_all(link)
            finally:
                with self._lock:
                    self._link = None
                self._card.reset()

    def remove(self) -> None:
        """Take the card out, in the middle of a command if need be; `play` ends. May be called twice."""
        with self._lock:
            self._removed = True
            if self._link is not None:
                with contextlib.suppress(OSError):  # the reader was faster
                    self._link.shutdown(socket.SHUT_RDWR)

    def _inserted(self) -> socket.socket:
        try:
            link = socket.create_connection(self._address, _FIRST_WORD)
        except TimeoutError as error:
            raise self._occupied() from error
        except OSError as error:
            raise TokenUnavailable(
                f"There is no virtual reader at {self.slot} ({error.strerror}); install pcscd and "
                "vsmartcard-vpcd, start pcscd, and check the port."
            ) from error
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link

    def _answer_all(self, link: socket.socket) -> None:
        """vpcd takes connections ahead: only the first message shows that the slot was empty."""
        try:
            message = _received(link)
        except TimeoutError as error:
            raise self._occupied() from error
        except OSError:
            return
        link.settimeout(None)
        with contextlib.suppress(OSError, TokenUnavailable):  # the reader or the card is gone
            while message is not None:
                answer = self._answer(message)
                if answer is not None:
                    link.sendall(len(answer).to_bytes(_LENGTH_OCTETS, "big") + answer)
                message = _received(link)

    def _answer(self, message: bytes) -> bytes | None:
        if message == _GET_ATR:
            return self._atr
        if message in (_POWER_OFF, _POWER_ON, _RESET):
            self._card.reset()
            if message == _POWER_ON and self._powered is not None:
                powered, self._powered = self._powered, None
                powered()
            return None
        answer = self._card.transmit(message)
        if len(answer) > _MAX_MESSAGE:
            raise TokenUnavailable(f"A virtual reader does not carry an answer of {len(answer)} octets.")
        return answer

    def _occupied(self) -> TokenUnavailable:
        return TokenUnavailable(
            f"The virtual reader at {self.slot} does not take the card: another one is in it, or this is "
            "the port of something else; use another port."
        )


def _received(link: socket.socket) -> bytes | None:
    """One message; None when the reader is gone."""
    length = _exactly(link, _LENGTH_OCTETS)
    return None if length is None else _exactly(link, int.from_bytes(length, "big"))


def _exactly(link: socket.socket, count: int) -> bytes | None:
    octets = b""
    while len(octets) < count:
        # vpcd sends length and body apart with Nagle's algorithm on: without an ACK at once, which the
        # kernel falls back from after each read, every command costs 40 ms.
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        part = link.recv(count - len(octets))
        if not part:
            return None
        octets += part
    return octets
