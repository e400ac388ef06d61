"""Two ends of one key block: the peer is the same class with the secrets the other way round.

What the peer never does by itself is protected by hand: `Peer.send`.
"""

from __future__ import annotations

import dataclasses
import os

import pytest

from tests.support.tls_messages import TLS_1_2
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import (
    AlertLevel,
    CipherSuite,
    ContentType,
    HandshakeType,
    KeyUpdateRequest,
)
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.errors import (
    ConnectionClosed,
    PeerError,
)
from vmtoken.tls.events import Closed, NeedData
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.key_schedule import next_traffic_secret
from vmtoken.tls.messages import (
    KeyUpdate,
    NewSessionTicket13,
    encode_message,
)
from vmtoken.tls.record import RecordReader, record_protection
from vmtoken.tls.suites import suite_of

SUITES = [suite for code in CipherSuite if (suite := suite_of(code))]
GCM_12 = CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
GCM_13 = CipherSuite.TLS_AES_128_GCM_SHA256

DATA = ContentType.APPLICATION_DATA
HANDSHAKE = ContentType.HANDSHAKE
ALERT = ContentType.ALERT

TICKET = encode_message(NewSessionTicket13(7200, 1, b"n", b"ticket"))
UPDATE = encode_message(KeyUpdate(KeyUpdateRequest.UPDATE_NOT_REQUESTED))
UPDATE_REQUESTED = encode_message(KeyUpdate(KeyUpdateRequest.UPDATE_REQUESTED))
CLOSE_NOTIFY = b"\x01\x00"

both_versions = pytest.mark.parametrize("code", [GCM_12, GCM_13], ids=["TLS 1.2", "TLS 1.3"])


def key_block(code: CipherSuite = GCM_13, **fields: object) -> KeyBlock:
    suite = suite_of(code)
    assert suite is not None
    start = 1 if suite.version == TLS_1_2 else 0
    block = KeyBlock(
        version=suite.version,
        cipher_suite=code,
        client_secret=SecretBytes(os.urandom(suite.secret_length)),
        server_secret=SecretBytes(os.urandom(suite.secret_length)),
        client_sequence=start,
        server_sequence=start,
    )
    return dataclasses.replace(block, **fields)  # type: ignore[arg-type]


class Peer:
    """The server: protects whatever it is told, and opens what we send."""

    def __init__(self, block: KeyBlock) -> None:
        suite = suite_of(block.cipher_suite)
        assert suite is not None
        self._suite = suite
        self._secrets = [block.client_secret.reveal(), block.server_secret.reveal()]
        self._receiving = record_protection(suite, self._secrets[0], block.client_sequence)
        self._sending = record_protection(suite, self._secrets[1], block.server_sequence)

    def send(self, content_type: int, content: bytes) -> bytes:
        return bytes(self._sending.protect(content_type, content))

    def open(self, octets: bytes | bytearray) -> list[tuple[int, bytes]]:
        """Type and content of each record, following our key updates."""
        opened = []
        for record in RecordReader().records(octets):
            content_type, content = self._receiving.unprotect(record)
            opened.append((content_type, bytes(content)))
            if content_type == HANDSHAKE and content[0] == HandshakeType.KEY_UPDATE:
                self._secrets[0] = next_traffic_secret(self._suite, self._secrets[0])
                self._receiving = record_protection(self._suite, self._secrets[0])
        return opened

    def update(self) -> None:
        """The key after a KeyUpdate that was sent."""
        self._secrets[1] = next_traffic_secret(self._suite, self._secrets[1])
        self._sending = record_protection(self._suite, self._secrets[1])


def session(code: CipherSuite = GCM_13, **fields: object) -> tuple[DelegatedConnection, Peer]:
    block = key_block(code, **fields)
    return DelegatedConnection(block), Peer(block)


def events(connection: DelegatedConnection) -> list[object]:
    """All that there is to tell, up to NeedData, Closed or an error."""
    told: list[object] = []
    while True:
        event = connection.next_event()
        if isinstance(event, NeedData):
            return told
        told.append(event)
        if isinstance(event, Closed):
            return told


def assert_ends(connection: DelegatedConnection, peer: Peer, error: type[PeerError]) -> None:
    """The session is over: the error again and again, and one alert for the peer."""
    for _ in range(2):
        with pytest.raises(error):
            connection.next_event()
    *_, (content_type, alert) = peer.open(connection.data_to_send())
    assert (content_type, alert) == (ALERT, bytes((AlertLevel.FATAL, error.alert)))
    assert connection.data_to_send() == b""
    with pytest.raises(ConnectionClosed):
        connection.send_data(b"more")
