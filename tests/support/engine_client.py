"""The TLS engine over a blocking socket, put together as the broker's token and the agent put it together.

`ClientConnection` runs the handshake; what is left of it is a key block and the secret for tickets.
From then on `DelegatedConnection` alone holds the session.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.support.pki import Identity, KeyKind, client_identity
from tests.support.servers import Server
from vmtoken.tls.client import ClientConnection
from vmtoken.tls.config import ClientConfig, Credential, TrustStore
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.errors import TlsError
from vmtoken.tls.events import (
    Closed,
    DataReceived,
    Event,
    HandshakeComplete,
    NeedData,
    ServerAuthenticated,
    SignatureNeeded,
    TicketReceived,
)
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.signatures import PublicKey, sign
from vmtoken.tls.tickets import ResumableSession

TIMEOUT = 20.0
"""Seconds that a test server may take for one answer."""


class SocketSession:
    """An open session over a socket: a `Stream`. Whoever makes one says what becomes of tickets."""

    def __init__(self, connection: socket.socket, key_block: KeyBlock, early_records: bytes) -> None:
        self.records = DelegatedConnection(key_block)
        self.records.receive_data(early_records)
        self._connection = connection

    def take_ticket(self, message: bytes) -> None:
        """A NewSessionTicket of TLS 1.3 came."""

    def send(self, data: bytes) -> None:
        self.records.send_data(data)
        self.flush()

    def receive(self) -> bytes:
        while True:
            match self.records.next_event():
                case NeedData():
                    self.flush()
                    self.records.receive_data(read_some(self._connection))
                case TicketReceived(message):
                    self.take_ticket(message)
                case DataReceived(data):
                    return data
                case Closed():
                    return b""

    def update_keys(self) -> None:
        """Update our keys and ask the server to update its own (RFC 8446 section 4.6.3)."""
        self.records.update_keys(request_peer=True)
        self.flush()

    def wait_for_records(self) -> None:
        """Until the server has sent something."""
        readable, _, _ = select.select([self._connection], [], [], TIMEOUT)
        assert readable

    def close(self) -> None:
        """Say close_notify and go."""
        self.records.close()
        self.flush()
        self._connection.close()

    def flush(self) -> None:
        self._connection.sendall(self.records.data_to_send())


class EngineSession(SocketSession):
    """What the engine says about its session."""

    def __init__(
        self, connection: socket.socket, handshake: ClientConnection, facts: HandshakeComplete
    ) -> None:
        self.version = f"1.{facts.version - 0x0301}"
        self.resumed = facts.resumed
        self.alpn = facts.alpn
        self.group = facts.group.name if facts.group is not None else None
        self.client_certificate_sent = facts.client_certificate_sent
        self.ticket = handshake.session()
        """What the next connection can resume: of TLS 1.2 at once, of TLS 1.3 once a ticket has come."""
        self._resumption = handshake.resumption()
        super().__init__(connection, handshake.key_block(), handshake.unread)

    def take_ticket(self, message: bytes) -> None:
        if self._resumption:
            self.ticket = self._resumption.session(message, datetime.now(UTC))


class EngineClient:
    """Connects with the identity of a kind of key; keeps the last session of each for the next connection."""

    name = "engine"
    kinds = tuple(KeyKind)
    failures: tuple[type[Exception], ...] = (TlsError,)

    def __init__(self) -> None:
        self._tickets: dict[tuple[int, KeyKind], ResumableSession] = {}

    def connect(
        self, server: Server, kind: KeyKind, *, alpn: tuple[str, ...] = (), **options: Any
    ) -> EngineSession:
        config = client_config(
            server.server_name,
            client_identity(kind),
            alpn=alpn,
            session=self._tickets.pop((server.port, kind), None),
            **options,
        )
        return open_session(server.port, config, client_identity(kind))

    def close(self, session: EngineSession, server: Server, kind: KeyKind) -> None:
        """End a session, and resume it with the next `connect`."""
        if session.ticket:
            self._tickets[server.port, kind] = session.ticket
        session.close()


def client_config(server_name: str, client: Identity, **options: Any) -> ClientConfig:
    """What the token would be told for this server."""
    schemes = PublicKey.of(client.certificate).schemes()
    return ClientConfig(
        server_name=server_name,
        trust=TrustStore([client.root_der]),
        time=datetime.now(UTC),
        credential=Credential(client.chain_der, schemes),
        **options,
    )


def open_session(port: int, config: ClientConfig, client: Identity) -> EngineSession:
    """A whole handshake with a server of this machine."""
    connection = connected(port)
    try:
        handshake = ClientConnection(config)
        facts = shake_hands(handshake, client, connection.sendall, lambda: read_some(connection))
        return EngineSession(connection, handshake, facts)
    except BaseException:
        connection.close()
        raise


def shake_hands(
    handshake: ClientConnection, client: Identity, send: Callable[[bytes], object], read: Callable[[], bytes]
) -> HandshakeComplete:
    """Drive a handshake to its end; alerts are sent before an error is raised."""
    while True:
        try:
            event = handshake.next_event()
        finally:
            send(handshake.data_to_send())
        match event:
            case HandshakeComplete():
                return event
            case NeedData():
                handshake.receive_data(read())
            case _:
                _answer(handshake, event, client)


def _answer(handshake: ClientConnection, event: Event, client: Identity) -> None:
    match event:
        case SignatureNeeded(scheme, content):
            handshake.provide_signature(scheme, sign(client.key, scheme, content))
        case ServerAuthenticated():
            pass
        case _:
            raise AssertionError(f"unexpected during a handshake: {event}")


def connected(port: int) -> socket.socket:
    """TCP to a server of this machine."""
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_some(connection: socket.socket) -> bytes:
    """What has come; raises `EOFError` when nothing more does."""
    data = connection.recv(65_536)
    if not data:
        raise EOFError("TCP ended")
    return data
