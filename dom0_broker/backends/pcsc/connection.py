"""PcscConnection: a card in a reader, as a `CardConnection`."""

from __future__ import annotations

from typing import Final, Protocol

from dom0_broker.backends.pcsc.messages import Connected
from vmtoken.codec import DecodeError
from vmtoken.errors import TokenUnavailable, VmTokenError
from vmtoken.iso7816.atr import AnswerToReset
from vmtoken.iso7816.status import StatusWord

_SHORTEST_APDU: Final = 4
"""Octets of CLA INS P1 P2; what is shorter means other things to some readers."""


class SessionCalls(Protocol):
    """What a connection needs of the pcscd behind it. Methods raise `TokenUnavailable`."""

    def transmit(self, session: int, reader: str, command: bytes) -> bytes:
        """One APDU, within the deadline."""
        ...

    def reset(self, session: int, reader: str) -> None:
        """Warm reset."""
        ...

    def disconnect(self, session: int, reader: str, *, reset: bool) -> None:
        """Give the card back; never fails."""
        ...


class PcscConnection:
    """A card that nobody else has. After an error it is of no use any more: the card has lost its state."""

    def __init__(self, calls: SessionCalls, session: int, reader: str, card: Connected) -> None:
        self._calls = calls
        self._session = session
        self._card = card
        self._problem: VmTokenError | None = None
        self._used = False
        self.reader = reader

    @property
    def atr(self) -> bytes:
        """Answer to reset."""
        return self._card.atr

    @property
    def t0(self) -> bool:
        """Whether the card speaks T=0: no Le behind data."""
        return self._card.t0

    @property
    def extended(self) -> bool:
        """Whether the card says in its ATR that it takes extended APDUs."""
        try:
            return AnswerToReset.decode(self._card.atr).extended_apdus
        except DecodeError:
            return False

    @property
    def is_broken(self) -> bool:
        """Whether it is of no use any more."""
        return self._problem is not None

    def transmit(self, command: bytes) -> bytes:
        """See `CardConnection.transmit`."""
        if len(command) < _SHORTEST_APDU:
            return StatusWord.WRONG_LENGTH.to_bytes(2, "big")
        self._check()
        try:
            return self._calls.transmit(self._session, self.reader, command)
        except VmTokenError as error:
            self._problem = error
            raise

    def reset(self) -> None:
        """See `CardConnection.reset`."""
        self._check()
        try:
            self._calls.reset(self._session, self.reader)
        except VmTokenError as error:
            self._problem = error
            raise

    def fail(self, problem: VmTokenError) -> None:
        """The card is gone or was reset, says somebody who knows: the next command is refused."""
        self._problem = self._problem or problem

    def close(self) -> None:
        """See `CardConnection.close`: the card is reset, so that nobody finds our PIN verified."""
        self._end(reset=True)

    def leave(self) -> None:
        """Close after only looking: the card is not reset."""
        self._end(reset=False)

    def _end(self, *, reset: bool) -> None:
        if not self._used:
            self._used = True
            self.fail(TokenUnavailable(f"The card in the reader '{self.reader}' was given back already."))
            self._calls.disconnect(self._session, self.reader, reset=reset)

    def _check(self) -> None:
        if self._problem is not None:
            raise self._problem.with_traceback(None)
