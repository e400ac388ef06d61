"""The connection as its driver uses it, and misuses it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.fakes.tls_server import FakeServer12, FakeServer13
from tests.support.memory import Client, PythonServer, config, credential, exchange, handshake, python_context
from tests.support.pki import KeyKind, client_identity, pki
from tests.support.refusals import first_flight, run12, run13
from vmtoken.errors import ClientCertificateRefused
from vmtoken.tls.client import ClientConnection
from vmtoken.tls.codes import AlertDescription, ContentType, ProtocolVersion, SignatureScheme
from vmtoken.tls.errors import AlertReceived, LocalError, RecordOverflow
from vmtoken.tls.events import NeedData, ServerAuthenticated, SignatureNeeded
from vmtoken.tls.extensions import RecordSizeLimit
from vmtoken.tls.failures import failure_of
from vmtoken.tls.record import RecordReader
from vmtoken.tls.signatures import sign

TLS12, TLS13 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
BOTH = pytest.mark.parametrize("version", [TLS12, TLS13], ids=lambda version: version.name)


def at_signature(version: ProtocolVersion) -> tuple[ClientConnection, SignatureNeeded]:
    """A connection that waits for a signature."""
    client, server = first_flight(version)
    connection = client.connection
    connection.receive_data(server.whole_flight())
    assert isinstance(connection.next_event(), ServerAuthenticated)
    needed = connection.next_event()
    assert isinstance(needed, SignatureNeeded)
    return connection, needed


def finished(version: ProtocolVersion) -> Client:
    client = Client(config())
    if version is TLS13:
        run13(FakeServer13(), client)
    else:
        run12(FakeServer12(), client)
    return client


def test_the_hello_is_there_at_once_and_once() -> None:
    connection = ClientConnection(config())
    assert connection.data_to_send()[0] == ContentType.HANDSHAKE
    assert connection.data_to_send() == b""
    assert connection.next_event() == NeedData()


def test_randomness_is_an_argument() -> None:
    settings = config(key_shares=())
    first, second = (ClientConnection(settings, random=bytes).data_to_send() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "call",
    [
        lambda connection: connection.key_block(),
        lambda connection: connection.resumption(),
        lambda connection: connection.session(),
        lambda connection: connection.export_keying_material("EXPORTER_test", None, 32),
        lambda connection: connection.send_data(b"data"),
        lambda connection: connection.close(),
        lambda connection: connection.provide_signature(SignatureScheme.ED25519, b""),
    ],
)
def test_what_does_not_belong_into_a_handshake_is_refused_and_does_no_harm(call) -> None:
    client, server = first_flight(TLS13)
    with pytest.raises(LocalError):
        call(client.connection)
    client.receive(server.whole_flight())
    assert client.complete


@BOTH
def test_without_the_signature_it_does_not_go_on(version: ProtocolVersion) -> None:
    connection, needed = at_signature(version)
    with pytest.raises(LocalError, match="waits for a signature"):
        connection.next_event()
    connection.provide_signature(needed.scheme, b"of any kind: the server will see")
    assert connection.data_to_send()


@BOTH
def test_a_signature_with_another_scheme_is_refused(version: ProtocolVersion) -> None:
    connection, needed = at_signature(version)
    with pytest.raises(LocalError, match="ECDSA_SECP256R1_SHA256"):
        connection.provide_signature(SignatureScheme.ED25519, b"signature")
    signature = sign(client_identity().key, needed.scheme, needed.content)
    connection.provide_signature(needed.scheme, signature)
    with pytest.raises(LocalError):
        connection.provide_signature(needed.scheme, signature)


@BOTH
def test_refusing_instead_of_signing_sends_nothing_of_the_flight(version: ProtocolVersion) -> None:
    connection, _ = at_signature(version)
    connection.refuse(AlertDescription.INTERNAL_ERROR)
    records = bytes(connection.data_to_send())
    alert = records.removeprefix(bytes.fromhex("140303000101"))
    assert len(alert) in (7, 24)
    with pytest.raises(LocalError, match="refused"):
        connection.next_event()


@BOTH
def test_a_complete_handshake_cannot_be_refused(version: ProtocolVersion) -> None:
    connection = finished(version).connection
    with pytest.raises(LocalError, match="too late"):
        connection.refuse()
    connection.close()
    assert connection.data_to_send()


@BOTH
def test_the_keys_go_once_and_end_the_connection(version: ProtocolVersion) -> None:
    connection = finished(version).connection
    keys = connection.key_block()
    assert keys.version is version
    for call in (
        connection.key_block,
        connection.resumption,
        connection.session,
        connection.next_event,
        lambda: connection.receive_data(b""),
        lambda: connection.export_keying_material("EXPORTER_test", None, 32),
        lambda: connection.send_data(b"data"),
        lambda: connection.refuse(),
    ):
        with pytest.raises(LocalError, match="handed over"):
            call()


@BOTH
def test_a_connection_that_uses_its_keys_does_not_give_them_away(version: ProtocolVersion) -> None:
    connection = finished(version).connection
    connection.send_data(b"data")
    with pytest.raises(LocalError, match="itself"):
        connection.key_block()


@BOTH
def test_nothing_secret_is_in_a_repr(version: ProtocolVersion) -> None:
    connection = finished(version).connection
    text = repr(connection._state) + repr(vars(connection))
    keys = connection.key_block()
    for secret in (keys.client_secret.reveal(), keys.server_secret.reveal()):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_refuses_our_certificate_says_so(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """In TLS 1.3 after the handshake is complete on our side."""
    identity = pki(KeyKind.ECDSA_P384).intermediate.issue("stranger")
    client = Client(config(credential=credential(identity)), identity)
    server = PythonServer(python_context(tmp_path, version=version))
    flight = client.receive(server.receive(bytes(client.connection.data_to_send())))
    client.connection.receive_data(server.receive(flight))
    with pytest.raises(AlertReceived) as caught:
        client.run()
    assert caught.value.description == AlertDescription.UNKNOWN_CA
    error = failure_of(caught.value, "server.example", client_certificate_sent=True)
    assert isinstance(error, ClientCertificateRefused)


def test_a_record_size_limit_holds_only_if_the_server_knows_it(tmp_path: Path) -> None:
    """RFC 8449 section 4; OpenSSL 3.0 does not."""
    client, server = Client(config(record_size_limit=64)), PythonServer(python_context(tmp_path))
    handshake(client, server)
    exchange(client, server)


@BOTH
def test_an_agreed_record_size_limit_is_in_the_key_block(version: ProtocolVersion) -> None:
    """In TLS 1.3 the content type counts; a server of TLS 1.2 takes what was announced as it is."""
    client = Client(config(record_size_limit=4096))
    extensions = (RecordSizeLimit(1024),)
    if version is TLS13:
        run13(FakeServer13(extensions=extensions), client)
    else:
        run12(FakeServer12(extensions=extensions), client)
    keys = client.connection.key_block()
    assert (keys.send_limit, keys.receive_limit) == ((1023, 4096) if version is TLS13 else (1024, 4097))


def test_a_longer_record_than_agreed_overflows() -> None:
    client, server = Client(config(record_size_limit=256)), FakeServer13(extensions=(RecordSizeLimit(1024),))
    server.receive_hello(client.connection.data_to_send())
    with pytest.raises(RecordOverflow):
        client.receive(server.whole_flight())


def test_our_flight_keeps_to_the_limit_of_the_server() -> None:
    client, server = Client(config()), FakeServer13(extensions=(RecordSizeLimit(64),))
    server.receive_hello(client.connection.data_to_send())
    flight = client.receive(server.whole_flight())
    reader = RecordReader()
    reader.receive(flight)
    while record := reader.next_record():
        assert len(record) <= 5 + 64 + 16
    server.finish(flight)
