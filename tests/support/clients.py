"""What the interop table asks of a client, be it the engine alone or the whole stack."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from tests.support.conversations import Stream
from tests.support.pki import KeyKind
from tests.support.servers import Server

BULK = b"0123456789abcdef" * (1 << 16)
"""1 MiB, sent there and back."""

KNOWN_ALPN = "http/1.1"


class Session(Stream, Protocol):
    """An open session and what the client says about it."""

    version: str
    resumed: bool
    alpn: str | None
    group: str | None
    """Spelled as in `NamedGroup`; None when unknown."""

    client_certificate_sent: bool


class Client(Protocol):
    """Connects to servers of this machine as `web01`, with the key of the kind that is asked for."""

    kinds: Collection[KeyKind]
    """The keys that it can have."""

    failures: tuple[type[Exception], ...]
    """What `connect` raises when there is no session."""

    def connect(self, server: Server, kind: KeyKind, *, alpn: tuple[str, ...] = ()) -> Session:
        """A session, resumed if an earlier one was closed that can be."""
        ...

    def close(self, session: Any, server: Server, kind: KeyKind) -> None:
        """End a session that `connect` gave."""
        ...


def check(
    session: Session, server: Server, *, version: str, resumed: bool, alpn: str | None = KNOWN_ALPN
) -> None:
    """Both sides agree on what the session is, and 1 MiB goes there and back."""
    assert (session.version, session.resumed, session.alpn or None) == (version, resumed, alpn)
    talk = server.talk(session)
    seen = talk.seen()
    assert (seen.version, seen.resumed, seen.client) == (version, resumed, "web01")
    assert (seen.alpn or None) in (None, alpn)
    assert (seen.server_name or None) in (None, server.server_name)
    talk.echo(BULK)
