"""A token over a blocking socket: the agent's part without agent, broker and link."""

from __future__ import annotations

import socket
import time

from guest_agent.early_records import early_records
from tests.support.engine_client import SocketSession, connected, read_some
from tests.support.servers import Server
from vmtoken.tls.record import RecordReader
from vmtoken.token import (
    Authorize,
    HandshakeFailed,
    HandshakeResult,
    HandshakeStart,
    HandshakeToken,
    Resumption,
)


class TokenSession(SocketSession):
    """An open session, and what the token says about it."""

    def __init__(
        self, connection: socket.socket, token: HandshakeToken, result: HandshakeResult, early: bytes
    ) -> None:
        block = result.key_block
        self.version = f"1.{block.version - 0x0301}"
        self.resumed = result.resumed
        self.alpn = result.alpn
        self.group = result.group
        self.client_certificate_sent = result.client_certificate_sent
        self._token, self._name = token, result.session
        self.ticket: Resumption | None = token.accept_ticket(self._name, b"")
        """What the next connection can resume: of TLS 1.2 at once, of TLS 1.3 once a ticket has come."""
        super().__init__(connection, block, early)

    def take_ticket(self, message: bytes) -> None:
        self.ticket = self._token.accept_ticket(self._name, message) or self.ticket


def connect(
    token: HandshakeToken,
    server: Server,
    ticket: Resumption | None = None,
    *,
    authorize: Authorize = lambda server: None,
    **options: object,
) -> TokenSession:
    """A whole handshake; the alert is sent before `HandshakeFailed` is raised."""
    resumption = ticket.handle if ticket else None
    settings = {"server_name": server.server_name, "time": int(time.time()), "resumption": resumption}
    start = HandshakeStart(**(settings | options))  # type: ignore[arg-type]
    connection = connected(server.port)
    try:
        return _shake_hands(connection, token, start, authorize)
    except BaseException as error:
        if isinstance(error, HandshakeFailed):
            connection.sendall(error.alert_flight)
        connection.close()
        raise


def _shake_hands(
    connection: socket.socket, token: HandshakeToken, start: HandshakeStart, authorize: Authorize
) -> TokenSession:
    step, reader, records = token.start(start, authorize), RecordReader(), b""
    while True:
        connection.sendall(step.client_flight)
        if step.result is not None:
            early = early_records(step.result.key_block, records) + reader.held
            return TokenSession(connection, token, step.result, early)
        records = b"".join(map(bytes, reader.records(read_some(connection))))
        step = token.process(records)
