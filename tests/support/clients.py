"""What the interop table asks of a client, be it the engine alone or the whole stack."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from tests.support.conversations import Stream
from tests.support.pki import KeyKind
from tests.support.servers import Server


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
