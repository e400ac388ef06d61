"""libpcsclite, the one module that imports it: contexts and cards with exceptions instead of numbers.

pyscard's plain functions are used, not its classes, whose monitors end when pcscd does. A status is looked
at before anything that came with it: beside an error, an answer is memory that nobody wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from smartcard import scard

PNP_NOTIFICATION: Final = "\\\\?PnP?\\Notification"
"""The reader that changes when readers come and go (SCardGetStatusChange)."""

INVALID_PARAMETER: Final = 0x80100004
"""SCARD_E_INVALID_PARAMETER."""

_COUNTER_SHIFT: Final = 16
_PROTOCOLS: Final = scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
_LEAST_ANSWER: Final = 2
"""Octets of SW1 SW2."""


class PcscError(Exception):
    """A function of PC/SC failed."""

    def __init__(self, status: int) -> None:
        super().__init__(f"PC/SC status {status & 0xFFFFFFFF:08X}")
        self.status = status & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ReaderEvent:
    """How a reader is."""

    state: int
    """As SCardGetStatusChange wants it back: flags, and above them how many times cards came or went."""

    atr: bytes

    @property
    def changes(self) -> int:
        """How many times cards came or went."""
        return self.state >> _COUNTER_SHIFT

    @property
    def present(self) -> bool:
        """Whether there is a card."""
        return bool(self.state & scard.SCARD_STATE_PRESENT)

    @property
    def mute(self) -> bool:
        """Whether the card does not answer to a reset."""
        return bool(self.state & scard.SCARD_STATE_MUTE)

    @property
    def in_use(self) -> bool:
        """Whether some program has the card, be it ours."""
        return bool(self.state & (scard.SCARD_STATE_INUSE | scard.SCARD_STATE_EXCLUSIVE))


class Context:
    """A line to pcscd, which carries one call at a time: each reader gets one of its own."""

    def __init__(self) -> None:
        status, self._context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
        _check(status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.release()

    def readers(self) -> list[str]:
        """The names of all readers."""
        status, names = scard.SCardListReaders(self._context, [])
        if status == scard.SCARD_E_NO_READERS_AVAILABLE:
            return []
        _check(status)
        return list(names)

    def wait(self, known: Mapping[str, int], seconds: float) -> dict[str, ReaderEvent]:
        """Wait until a reader is in another state than `known`; the states of all of them, changed or not."""
        states = [(name, state) for name, state in known.items()]
        status, events = scard.SCardGetStatusChange(self._context, int(seconds * 1000), states)
        if status != scard.SCARD_E_TIMEOUT:
            _check(status)
        return {name: ReaderEvent(state, bytes(atr)) for name, state, atr in events}

    def connect(self, reader: str) -> Card:
        """Power the card up and have it for ourselves alone."""
        status, handle, protocol = scard.SCardConnect(
            self._context, reader, scard.SCARD_SHARE_EXCLUSIVE, _PROTOCOLS
        )
        _check(status)
        return Card(handle, protocol)

    def release(self) -> None:
        """Give everything back; pcscd may be gone already."""
        scard.SCardReleaseContext(self._context)


class Card:
    """A card that is ours."""

    def __init__(self, handle: Any, protocol: int) -> None:
        self._handle = handle
        self._protocol = protocol

    @property
    def is_t0(self) -> bool:
        """Whether it speaks T=0."""
        return bool(self._protocol == scard.SCARD_PROTOCOL_T0)

    def atr(self) -> bytes:
        """Its answer to reset."""
        status, _, _, _, atr = scard.SCardStatus(self._handle)
        _check(status)
        return bytes(atr)

    def transmit(self, command: bytes) -> bytes:
        """One APDU. An answer without a status word is one of a card that was pulled out."""
        structure = scard.SCARD_PCI_T0 if self.is_t0 else scard.SCARD_PCI_T1
        status, answer = scard.SCardTransmit(self._handle, structure, list(command))
        _check(status)
        if len(answer) < _LEAST_ANSWER:
            raise PcscError(scard.SCARD_E_NOT_TRANSACTED)
        return bytes(answer)

    def reset(self) -> None:
        """Warm reset."""
        self._reconnect(scard.SCARD_RESET_CARD)

    def power_cycle(self) -> None:
        """Cold reset."""
        self._reconnect(scard.SCARD_UNPOWER_CARD)

    def disconnect(self, *, reset: bool) -> None:
        """Give it to others; after a reset they find no PIN of ours verified. It may be gone already."""
        disposition = scard.SCARD_RESET_CARD if reset else scard.SCARD_LEAVE_CARD
        scard.SCardDisconnect(self._handle, disposition)

    def _reconnect(self, initialization: int) -> None:
        status, protocol = scard.SCardReconnect(
            self._handle, scard.SCARD_SHARE_EXCLUSIVE, _PROTOCOLS, initialization
        )
        _check(status)
        self._protocol = protocol


def is_unaware() -> int:
    """The state of a reader of which nothing is known yet."""
    return int(scard.SCARD_STATE_UNAWARE)


def _check(status: int) -> None:
    if status != scard.SCARD_S_SUCCESS:
        raise PcscError(status)
