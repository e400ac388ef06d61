"""Handshakes of a token with a server in memory, and what a guest does with the key block."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.support.memory import PyOpenSslServer, PythonServer
from tests.support.pki import NOW, SERVER_NAME
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.events import DataReceived, NeedData, TicketReceived
from vmtoken.token import HandshakeResult, HandshakeStart, HandshakeToken, Resumption, ServerIdentity

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = [pytest.param(TLS_1_2, id="TLS 1.2"), pytest.param(TLS_1_3, id="TLS 1.3")]
SPEAKS = {TLS_1_2: ProtocolVersion.TLS_1_2, TLS_1_3: ProtocolVersion.TLS_1_3}


@dataclass
class Session:
    """Both ends after a handshake."""

    result: HandshakeResult
    server: PythonServer | PyOpenSslServer
    from_server: bytes
    judged: list[ServerIdentity] = field(default_factory=list)


def start(resumption: bytes | None = None, **changes: object) -> HandshakeStart:
    settings: dict[str, object] = {"server_name": SERVER_NAME, "time": int(NOW.timestamp())}
    return HandshakeStart(resumption=resumption, **(settings | changes))  # type: ignore[arg-type]


def connect(
    token: HandshakeToken,
    peer: ssl.SSLContext | PyOpenSslServer,
    begin: HandshakeStart | None = None,
    feed: Callable[[bytes], list[bytes]] = lambda records: [records],
) -> Session:
    """Run a handshake; `feed` cuts what the server sends into what the token is given."""
    server = PythonServer(peer) if isinstance(peer, ssl.SSLContext) else peer
    judged: list[ServerIdentity] = []
    step = token.start(begin or start(), judged.append)
    result = step.result
    from_server = server.receive(step.client_flight)
    for _ in range(10):
        if result is not None and server.is_ready:
            return Session(result, server, from_server, judged)
        if server.failure:
            raise server.failure
        to_server = b""
        for records in feed(from_server):
            step = token.process(records)
            to_server += step.client_flight
            result = step.result or result
        from_server = server.receive(to_server)
    raise AssertionError("the handshake has no end")


def talk(session: Session) -> list[bytes]:
    """Application data both ways under the key block; the tickets that came with it."""
    guest = DelegatedConnection(session.result.key_block)
    guest.send_data(b"question")
    guest.receive_data(session.from_server + session.server.receive(bytes(guest.data_to_send())))
    guest.receive_data(session.server.send(b"answer"))
    assert session.server.received == b"question"
    tickets, received = [], b""
    while not isinstance(event := guest.next_event(), NeedData):
        match event:
            case TicketReceived(message):
                tickets.append(bytes(message))
            case DataReceived(data):
                received += data
    assert received == b"answer"
    return tickets


def resumption(token: HandshakeToken, session: Session) -> Resumption:
    tickets = talk(session)
    found = token.accept_ticket(session.result.session, tickets[0] if tickets else b"")
    assert found is not None
    return found
