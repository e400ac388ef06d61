"""Sessions that can be resumed; their secrets stay here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from vmtoken.tls.certificates import VerifiedServer
from vmtoken.tls.tickets import ResumableSession, ResumptionSecret
from vmtoken.token import Resumption, ServerIdentity

MAX_SESSIONS: Final = 1024
"""Sessions that may still bring a ticket: as many as an agent is expected to hold open."""

MAX_TICKETS: Final = 512
_HANDLE_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class EndedHandshake:
    """What a handshake leaves behind for resumption."""

    time: datetime
    """The time of its start: nothing here has a clock of its own."""

    secret: ResumptionSecret | None
    """TLS 1.3: makes sessions of tickets."""

    session: ResumableSession | None
    """TLS 1.2; a session that can be resumed may be this very object."""

    def take_ticket(self, message: bytes) -> ResumableSession | None:
        """The session that a ticket stands for; of TLS 1.2 the message is empty. Raises `PeerError`."""
        if not message:
            return self.session
        return None if self.secret is None else self.secret.session(message, self.time)

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
        """Keep what a handshake left; the handle names it for `accept_ticket`."""
        if len(self._ended) >= MAX_SESSIONS:
            self._ended.popitem(last=False)[1].wipe()
        handle = self._random(_HANDLE_LENGTH)
        self._ended[handle] = handshake
        return handle

    def accept_ticket(self, handle: bytes, message: bytes) -> Resumption | None:
        """See `HandshakeToken.accept_ticket`. Raises `KeyError` for an unknown session, `PeerError`."""
        session = self._ended[handle].take_ticket(message)
        return None if session is None else self._keep(session)

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

    def _keep(self, session: ResumableSession) -> Resumption:
        if len(self._resumable) >= MAX_TICKETS:
            self._resumable.popitem(last=False)
        handle = self._random(_HANDLE_LENGTH)
        self._resumable[handle] = session
        server = identity_of(session.server)
        return Resumption(handle, server, session.version, session.lifetime, session.single_use)


def identity_of(server: VerifiedServer) -> ServerIdentity:
    """A verified server as policy judges it."""
    return ServerIdentity(server.server_name, server.spki_sha256, server.leaf)
