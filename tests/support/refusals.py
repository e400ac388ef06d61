"""Handshakes with fake servers, and what must hold when one is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fakes.tls_server import FakeServer12, FakeServer13
from tests.support.memory import Client, config
from vmtoken.tls.codes import AlertDescription, ContentType, ProtocolVersion
from vmtoken.tls.errors import TlsError
from vmtoken.tls.events import HandshakeComplete


def first_flight(version: ProtocolVersion) -> tuple[Client, FakeServer13 | FakeServer12]:
    """A client, and a server that has its hello and its flight ready."""
    client = Client(config())
    server = FakeServer13() if version is ProtocolVersion.TLS_1_3 else FakeServer12()
    server.receive_hello(client.connection.data_to_send())
    return client, server


def run13(server: FakeServer13, client: Client) -> None:
    """A whole handshake of TLS 1.3."""
    server.receive_hello(client.connection.data_to_send())
    answer = client.receive(server.whole_flight())
    if client.complete is None:  # a HelloRetryRequest
        server.receive_hello(answer)
        answer = client.receive(server.whole_flight())
    server.finish(answer)


def run12(server: FakeServer12, client: Client) -> None:
    """A whole handshake of TLS 1.2."""
    server.receive_hello(client.connection.data_to_send())
    answer = client.receive(server.whole_flight())
    if client.complete is None:
        server.receive_key_exchange(answer)
        client.receive(server.whole_flight())
    else:
        server.client_messages(answer)


def assert_refused(run: Callable[[], None], client: Client, alert: AlertDescription) -> None:
    """The error names the alert, the alert is all that is sent, and the connection stays closed."""
    with pytest.raises(TlsError) as caught:
        run()
    assert getattr(caught.value, "alert", None) is alert, repr(caught.value)
    assert str(caught.value)
    records = bytes(client.connection.data_to_send())
    assert records[0] in (ContentType.ALERT, ContentType.APPLICATION_DATA)
    if records[0] == ContentType.ALERT and len(records) == 7:
        assert records[5:] == bytes((2, alert))
    assert not any(isinstance(event, HandshakeComplete) for event in client.events)
    with pytest.raises(TlsError):
        client.connection.next_event()
    with pytest.raises(TlsError):
        client.connection.receive_data(b"more")
    with pytest.raises(TlsError):
        client.connection.key_block()
    assert client.connection.data_to_send() == b""
