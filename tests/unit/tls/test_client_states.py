"""Records and messages out of turn: every state against every message, in both versions."""

from __future__ import annotations

import pytest

from tests.fakes.tls_server import FakeServer12, FakeServer13
from tests.support.memory import Client, config
from tests.support.refusals import assert_refused, first_flight
from vmtoken.tls.codes import (
    AlertDescription,
    ContentType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
)
from vmtoken.tls.errors import AlertReceived, TlsError
from vmtoken.tls.events import ServerAuthenticated
from vmtoken.tls.extensions import (
    KeyShareHelloRetryRequest,
)
from vmtoken.tls.messages import (
    CertificateStatus,
    CertificateVerify,
    ClientHello,
    ClientKeyExchange,
    Finished,
    HelloRequest,
    KeyUpdate,
    NewSessionTicket12,
    NewSessionTicket13,
    ServerKeyExchange,
    encode_message,
)

A, H = AlertDescription, HandshakeType
TLS12, TLS13 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
BOTH = pytest.mark.parametrize("version", [TLS12, TLS13], ids=lambda version: version.name)
P384_WANTED = KeyShareHelloRetryRequest(NamedGroup.SECP384R1)


def alert_record(level: int, description: int) -> bytes:
    return bytes((21, 3, 3, 0, 2, level, description))


@pytest.mark.parametrize(
    "records", [b"HTTP/1.1 400 Bad Request\r\n", b"\x17\x03\x03\0\x01x", b"\x16\x03\x03\0\0"]
)
def test_what_is_no_handshake_is_unexpected(records: bytes) -> None:
    client = Client(config())
    client.connection.data_to_send()
    assert_refused(lambda: client.receive(records), client, A.UNEXPECTED_MESSAGE)


def test_a_long_record_overflows() -> None:
    client = Client(config())
    client.connection.data_to_send()
    assert_refused(lambda: client.receive(b"\x16\x03\x03\x48\x01"), client, A.RECORD_OVERFLOW)


def test_an_altered_record_does_not_decrypt() -> None:
    client, server = first_flight(TLS13)
    flight = bytearray(server.whole_flight())
    flight[-1] ^= 1
    assert_refused(lambda: client.receive(bytes(flight)), client, A.BAD_RECORD_MAC)


@pytest.mark.parametrize("description", [A.HANDSHAKE_FAILURE, A.PROTOCOL_VERSION, A.CLOSE_NOTIFY])
def test_an_alert_ends_the_handshake_without_an_answer(description: AlertDescription) -> None:
    client = Client(config())
    client.connection.data_to_send()
    with pytest.raises(AlertReceived) as caught:
        client.receive(alert_record(1 if description is A.CLOSE_NOTIFY else 2, description))
    assert caught.value.description == description
    assert client.connection.data_to_send() == b""
    with pytest.raises(AlertReceived):
        client.connection.next_event()


@BOTH
def test_a_warning_before_the_server_hello_is_passed_over(version: ProtocolVersion) -> None:
    client, server = first_flight(version)
    client.receive(alert_record(1, A.UNRECOGNIZED_NAME) + server.whole_flight())


def test_warnings_without_end_are_refused() -> None:
    client = Client(config())
    client.connection.data_to_send()
    flood = alert_record(1, A.UNRECOGNIZED_NAME) * 5
    assert_refused(lambda: client.receive(flood), client, A.UNEXPECTED_MESSAGE)


CCS = bytes.fromhex("140303000101")


def test_change_cipher_spec_is_dropped_in_tls_1_3() -> None:
    client, server = first_flight(TLS13)
    flight = b"".join(CCS + step.records() for step in server.steps)
    server.finish(client.receive(flight))
    assert client.complete


def test_change_cipher_spec_without_end_is_refused() -> None:
    client, server = first_flight(TLS13)
    flight = server.flight_until("FINISHED") + CCS * 40
    assert_refused(lambda: client.receive(flight), client, A.UNEXPECTED_MESSAGE)


@pytest.mark.parametrize("record", ["140303000102", "14030300020101", "1403030000"])
def test_another_change_cipher_spec_is_refused(record: str) -> None:
    client, server = first_flight(TLS13)
    flight = server.flight_until("FINISHED") + bytes.fromhex(record)
    assert_refused(lambda: client.receive(flight), client, A.UNEXPECTED_MESSAGE)


@pytest.mark.parametrize(
    "before", ["SERVER_HELLO", "CERTIFICATE", "SERVER_KEY_EXCHANGE", "SERVER_HELLO_DONE"]
)
def test_an_early_change_cipher_spec_is_refused_in_tls_1_2(before: str) -> None:
    """CVE-2014-0224."""
    client, server = first_flight(TLS12)
    flight = server.flight_until(before) + CCS + server.whole_flight()
    assert_refused(lambda: client.receive(flight), client, A.UNEXPECTED_MESSAGE)


def test_change_cipher_spec_may_not_cut_a_message() -> None:
    client, server = first_flight(TLS13)
    content = server.steps[0].content
    flight = b"".join(
        bytes(server.steps[0].protection.protect(ContentType.HANDSHAKE, part)) for part in (content[:9],)
    )
    assert_refused(lambda: client.receive(flight + CCS), client, A.UNEXPECTED_MESSAGE)


def test_change_cipher_spec_without_end_is_refused_before_the_server_hello() -> None:
    client = Client(config())
    client.connection.data_to_send()
    assert_refused(lambda: client.receive(CCS * 40), client, A.UNEXPECTED_MESSAGE)


def test_nothing_may_stand_behind_finished_in_its_record() -> None:
    client, server = first_flight(TLS13)
    client.receive(server.flight_until("FINISHED"))
    content = server.steps[0].content + encode_message(NewSessionTicket13(1, 0, b"", b"x"))
    record = bytes(server.writing.protect(ContentType.HANDSHAKE, content))
    assert_refused(lambda: client.receive(record), client, A.UNEXPECTED_MESSAGE)
    assert not any(isinstance(event, ServerAuthenticated) for event in client.events)


def test_nothing_may_stand_behind_finished_in_its_record_in_tls_1_2() -> None:
    client, server = first_flight(TLS12)
    assert isinstance(server, FakeServer12)
    server.receive_key_exchange(client.receive(server.whole_flight()))
    client.receive(server.flight_until("FINISHED"))
    content = server.steps[0].content + encode_message(HelloRequest())
    record = bytes(server.writing.protect(ContentType.HANDSHAKE, content))
    assert_refused(lambda: client.receive(record), client, A.UNEXPECTED_MESSAGE)


@BOTH
def test_flights_may_come_byte_by_byte(version: ProtocolVersion) -> None:
    client, server = first_flight(version)
    answer = b"".join(client.receive(bytes((octet,))) for octet in server.whole_flight())
    if isinstance(server, FakeServer13):
        server.finish(answer)
    else:
        server.receive_key_exchange(answer)
        for octet in server.whole_flight():
            client.receive(bytes((octet,)))
    assert client.complete


@BOTH
def test_messages_may_be_cut_into_tiny_records_and_share_large_ones(version: ProtocolVersion) -> None:
    for size in (1, 7, 16384):
        client, server = first_flight(version)
        hello, rest = server.steps[0], server.steps[1:]
        records = [bytes(hello.protection.protect(ContentType.HANDSHAKE, hello.content))]
        content = b"".join(s.content for s in rest if s.content_type is ContentType.HANDSHAKE)
        protection = rest[-1].protection
        records += [
            bytes(protection.protect(ContentType.HANDSHAKE, content[i : i + size]))
            for i in range(0, len(content), size)
        ]
        answer = client.receive(b"".join(records))
        assert answer
        assert any(isinstance(event, ServerAuthenticated) for event in client.events)


# Every state, every message

SAMPLES = {kind: bytes((kind, 0, 0, 0)) for kind in HandshakeType}


def stages(version: ProtocolVersion) -> list[str]:
    _, server = first_flight(version)
    return [step.name for step in server.steps if step.content_type is ContentType.HANDSHAKE]


STAGES = [(version, name) for version in (TLS12, TLS13) for name in stages(version)]


@pytest.mark.parametrize(("version", "stage"), STAGES, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("kind", HandshakeType, ids=lambda kind: kind.name)
def test_a_message_out_of_turn_is_unexpected(
    version: ProtocolVersion, stage: str, kind: HandshakeType
) -> None:
    client, server = first_flight(version)
    client.receive(server.flight_until(stage))
    if kind in client.connection._state.expected:
        return  # it is this message's turn
    record = bytes(server.steps[0].protection.protect(ContentType.HANDSHAKE, message_of(kind, version)))
    assert_refused(lambda: client.receive(record), client, A.UNEXPECTED_MESSAGE)


def message_of(kind: HandshakeType, version: ProtocolVersion) -> bytes:
    """One that parses, out of an honest server's flight where it has one."""
    _, server = first_flight(version)
    found = [step.content for step in server.steps if step.name == kind.name]
    if kind is H.NEW_SESSION_TICKET and version is TLS13:
        return encode_message(NewSessionTicket13(1, 0, b"", b"x"))
    return found[0] if found else PARSING.get(kind, SAMPLES[kind])


@pytest.mark.parametrize("stage", ["NEW_SESSION_TICKET", "CHANGE_CIPHER_SPEC", "FINISHED"])
@pytest.mark.parametrize("kind", HandshakeType, ids=lambda kind: kind.name)
def test_a_message_out_of_turn_is_unexpected_in_the_second_flight(stage: str, kind: HandshakeType) -> None:
    client, server = Client(config()), FakeServer12(ticket=b"ticket")
    server.receive_hello(client.connection.data_to_send())
    server.receive_key_exchange(client.receive(server.whole_flight()))
    client.receive(server.flight_until(stage))
    if kind in client.connection._state.expected:
        return
    record = bytes(server.steps[0].protection.protect(ContentType.HANDSHAKE, message_of(kind, TLS12)))
    assert_refused(lambda: client.receive(record), client, A.UNEXPECTED_MESSAGE)


@pytest.mark.parametrize("kind", HandshakeType, ids=lambda kind: kind.name)
def test_a_message_out_of_turn_is_unexpected_after_a_hello_retry_request(kind: HandshakeType) -> None:
    client, server = Client(config()), FakeServer13(retry=(P384_WANTED,), group=NamedGroup.SECP384R1)
    server.receive_hello(client.connection.data_to_send())
    server.receive_hello(client.receive(server.whole_flight()))
    if kind is H.SERVER_HELLO:
        return
    record = bytes(server.steps[0].protection.protect(ContentType.HANDSHAKE, message_of(kind, TLS13)))
    assert_refused(lambda: client.receive(record), client, A.UNEXPECTED_MESSAGE)


PARSING = {
    H.NEW_SESSION_TICKET: encode_message(NewSessionTicket12(1, b"x")),
    H.CERTIFICATE_VERIFY: encode_message(CertificateVerify(0x0403, b"x")),
    H.SERVER_KEY_EXCHANGE: encode_message(ServerKeyExchange(NamedGroup.X25519, b"x", 0x0403, b"x")),
    H.CERTIFICATE_STATUS: encode_message(CertificateStatus(b"x")),
    H.CLIENT_KEY_EXCHANGE: encode_message(ClientKeyExchange(b"x")),
    H.KEY_UPDATE: encode_message(KeyUpdate(0)),
    H.FINISHED: encode_message(Finished(b"x")),
    H.CLIENT_HELLO: encode_message(ClientHello(bytes(32), b"", (0x1301,))),
}


@BOTH
def test_the_client_answers_nothing_before_the_driver_consents(version: ProtocolVersion) -> None:
    client, server = first_flight(version)
    client.connection.receive_data(server.whole_flight())
    event = client.connection.next_event()
    assert isinstance(event, ServerAuthenticated)
    assert client.connection.data_to_send() == b""
    client.connection.refuse(A.ACCESS_DENIED)
    records = bytes(client.connection.data_to_send())
    if version is TLS13:
        content_type, content = server.reading.unprotect(records)
    else:
        content_type, content = records[0], memoryview(records)[5:]
    assert (content_type, bytes(content)) == (ContentType.ALERT, bytes((2, A.ACCESS_DENIED)))
    with pytest.raises(TlsError):
        client.connection.next_event()
