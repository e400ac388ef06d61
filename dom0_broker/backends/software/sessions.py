"""Sessions that the element can resume; their secrets never leave it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from dom0_broker.backends.software.card_error import CardError
from vmtoken.cards.profile import ServerExport, TicketAnswer
from vmtoken.iso7816.status import StatusWord
from vmtoken.tls.certificates import VerifiedServer
from vmtoken.tls.errors import TlsError
from vmtoken.tls.tickets import ResumableSession, ResumptionSecret

_MAX_SESSIONS = 1024
"""Sessions that may still bring a ticket: as many as an agent is expected to hold open."""

_MAX_TICKETS = 512
_HANDLE_LENGTH = 16


@dataclass(frozen=True, slots=True)
class EndedHandshake:
    """What a handshake leaves behind for resumption."""

    time: datetime
    """The time of its Start: the element has no clock of its own."""

    secret: ResumptionSecret | None
    """TLS 1.3: makes sessions of tickets."""

    session: ResumableSession | None
    """TLS 1.2; a session that can be resumed may be this very object."""

    def wipe(self) -> None:
        """Forget the TLS 1.3 secret."""
        if self.secret is not None:
            self.secret.wipe()


class SessionTable:
    """Two bounded tables, oldest out first: ended handshakes, and sessions that can be resumed."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._ended: OrderedDict[bytes, EndedHandshake] = OrderedDict()
        self._resumable: OrderedDict[bytes, ResumableSession] = OrderedDict()

    def add(self, handshake: EndedHandshake) -> bytes:
        """Keep what a handshake left; the handle names it for Take-Ticket."""
        if len(self._ended) >= _MAX_SESSIONS:
            self._ended.popitem(last=False)[1].wipe()
        handle = self._random(_HANDLE_LENGTH)
        self._ended[handle] = handshake
        return handle

    def take_ticket(self, handle: bytes, message: bytes) -> bytes:
        """The answer to Take-Ticket; empty if the session cannot be resumed. Raises `CardError`."""
        ended = self._ended.get(handle)
        if ended is None:
            raise CardError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        try:
            session = _session(ended, message)
        except TlsError:
            raise CardError(StatusWord.WRONG_DATA) from None
        return b"" if session is None else self._keep(session)

    def resume(self, handle: bytes | None) -> ResumableSession | None:
        """The session of a handle; a TLS 1.3 one is given out once (RFC 8446 appendix C.4)."""
        session = None if handle is None else self._resumable.get(handle)
        if session is not None and handle is not None and session.single_use:
            del self._resumable[handle]
        return session

    def clear(self) -> None:
        """Forget everything; no handshake may be using a session."""
        for ended in self._ended.values():
            ended.wipe()
        for session in self._resumable.values():
            session.secret.wipe()
        self._ended.clear()
        self._resumable.clear()

    def _keep(self, session: ResumableSession) -> bytes:
        if len(self._resumable) >= _MAX_TICKETS:
            self._resumable.popitem(last=False)
        handle = self._random(_HANDLE_LENGTH)
        self._resumable[handle] = session
        return TicketAnswer(
            handle, session.version, session.lifetime, server_export(session.server, complete=True)
        ).encode()


def server_export(server: VerifiedServer, *, complete: bool) -> ServerExport:
    """A verified server as it goes out of the element."""
    return ServerExport(server.server_name, server.spki_sha256, server.leaf, complete)


def _session(ended: EndedHandshake, message: bytes) -> ResumableSession | None:
    if not message:
        return ended.session
    return None if ended.secret is None else ended.secret.session(message, ended.time)
