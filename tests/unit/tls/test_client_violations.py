"""Servers that break the protocol: each is refused with the alert that it is owed, and gets no answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.fakes.tls_server import FakeServer12, FakeServer13
from tests.support.memory import Client, config
from tests.support.pki import NOW, KeyKind, Usage, pki, server_identity
from vmtoken.tls.codes import (
    AlertDescription,
    CipherSuite,
    ContentType,
    ExtensionType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    SignatureScheme,
)
from vmtoken.tls.errors import AlertReceived, PeerError, TlsError, UnexpectedMessage
from vmtoken.tls.events import HandshakeComplete, ServerAuthenticated
from vmtoken.tls.extensions import (
    AlpnSelection,
    CertificateAuthorities,
    Cookie,
    EarlyData,
    EcPointFormats,
    ExtendedMasterSecret,
    Extension,
    Extensions,
    KeyShareEntry,
    KeyShareHelloRetryRequest,
    KeyShareServerHello,
    OcspStatus,
    RawExtension,
    RecordSizeLimit,
    RenegotiationInfo,
    SelectedPsk,
    SelectedVersion,
    SessionTicket,
)
from vmtoken.tls.messages import (
    DOWNGRADE_TO_TLS_1_1,
    DOWNGRADE_TO_TLS_1_2,
    CertificateEntry,
    CertificateStatus,
    CertificateVerify,
    ClientHello,
    ClientKeyExchange,
    Finished,
    HandshakeMessage,
    KeyUpdate,
    NewSessionTicket12,
    NewSessionTicket13,
    ServerKeyExchange,
    encode_message,
)

A, H = AlertDescription, HandshakeType
TLS12, TLS13 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
Change = Callable[[HandshakeMessage], object]


def run13(server: FakeServer13, client: Client) -> None:
    server.receive_hello(client.connection.data_to_send())
    if server.hello is not None and not server.steps:
        return
    answer = client.receive(server.whole_flight())
    if client.complete is None:  # a HelloRetryRequest
        server.receive_hello(answer)
        answer = client.receive(server.whole_flight())
    server.finish(answer)


def run12(server: FakeServer12, client: Client) -> None:
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


def with_extensions(*extra: Extension, without: tuple[type, ...] = ()) -> Change:
    """Add extensions to a message and take some away."""

    def change(message: HandshakeMessage) -> HandshakeMessage:
        kept = tuple(item for item in message.extensions if not isinstance(item, without))
        return replace(message, extensions=Extensions(kept + extra))

    return change


def field(**values: object) -> Change:
    return lambda message: replace(message, **values)


def test_honest_servers_are_served() -> None:
    for server in (FakeServer13(), FakeServer13(request_certificate=False)):
        client = Client(config())
        run13(server, client)
        assert client.complete
    for server12 in (FakeServer12(), FakeServer12(ticket=b"ticket"), FakeServer12(request_certificate=False)):
        client = Client(config())
        run12(server12, client)
        assert client.complete


# TLS 1.3

UNASKED = RawExtension(0x4A4A, b"grease")
RSA = server_identity(KeyKind.RSA_2048)
STRANGER = pki(KeyKind.ECDSA_P384).intermediate.issue()
CLIENT_ONLY = pki().intermediate.issue(usage=Usage.CLIENT)
OTHER_NAME = pki().intermediate.issue("other.example")
EXPIRED = pki().intermediate.issue(not_after=NOW.replace(year=NOW.year - 1))


def chain(identity) -> Change:
    return field(entries=tuple(CertificateEntry(der) for der in identity.chain_der))


def stapled(staple: bytes) -> Change:
    def change(message):
        first = replace(message.entries[0], extensions=Extensions((OcspStatus(staple),)))
        return replace(message, entries=(first, *message.entries[1:]))

    return change


def entry_extension(extension: Extension) -> Change:
    def change(message):
        first = replace(message.entries[0], extensions=Extensions((extension,)))
        return replace(message, entries=(first, *message.entries[1:]))

    return change


X25519_SHARE = KeyShareServerHello(KeyShareEntry(NamedGroup.X25519, bytes(32)))
P384_SHARE = KeyShareServerHello(KeyShareEntry(NamedGroup.SECP384R1, b"\x04" + bytes(96)))

VIOLATIONS_13: dict[str, tuple[HandshakeType, Change, AlertDescription]] = {
    "suite not offered": (H.SERVER_HELLO, field(cipher_suite=0x1304), A.ILLEGAL_PARAMETER),
    "suite of TLS 1.2": (
        H.SERVER_HELLO,
        field(cipher_suite=CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        A.ILLEGAL_PARAMETER,
    ),
    "session id not echoed": (H.SERVER_HELLO, field(legacy_session_id_echo=bytes(32)), A.ILLEGAL_PARAMETER),
    "session id empty": (H.SERVER_HELLO, field(legacy_session_id_echo=b""), A.ILLEGAL_PARAMETER),
    "compression": (H.SERVER_HELLO, field(legacy_compression_method=1), A.ILLEGAL_PARAMETER),
    "legacy version": (H.SERVER_HELLO, field(legacy_version=0x0304), A.ILLEGAL_PARAMETER),
    "version 1.2 in the extension": (
        H.SERVER_HELLO,
        with_extensions(SelectedVersion(0x0303), without=(SelectedVersion,)),
        A.ILLEGAL_PARAMETER,
    ),
    "version of the future": (
        H.SERVER_HELLO,
        with_extensions(SelectedVersion(0x0305), without=(SelectedVersion,)),
        A.ILLEGAL_PARAMETER,
    ),
    "no share": (H.SERVER_HELLO, with_extensions(without=(KeyShareServerHello,)), A.MISSING_EXTENSION),
    "zero share": (
        H.SERVER_HELLO,
        with_extensions(X25519_SHARE, without=(KeyShareServerHello,)),
        A.ILLEGAL_PARAMETER,
    ),
    "share in a group without ours": (
        H.SERVER_HELLO,
        with_extensions(P384_SHARE, without=(KeyShareServerHello,)),
        A.ILLEGAL_PARAMETER,
    ),
    "PSK not offered": (H.SERVER_HELLO, with_extensions(SelectedPsk(0)), A.UNSUPPORTED_EXTENSION),
    "unasked in ServerHello": (H.SERVER_HELLO, with_extensions(UNASKED), A.UNSUPPORTED_EXTENSION),
    "misplaced in ServerHello": (
        H.SERVER_HELLO,
        with_extensions(RecordSizeLimit(1024)),
        A.ILLEGAL_PARAMETER,
    ),
    "unasked in EncryptedExtensions": (
        H.ENCRYPTED_EXTENSIONS,
        with_extensions(UNASKED),
        A.UNSUPPORTED_EXTENSION,
    ),
    "misplaced in EncryptedExtensions": (
        H.ENCRYPTED_EXTENSIONS,
        with_extensions(RawExtension(ExtensionType.KEY_SHARE, b"")),
        A.ILLEGAL_PARAMETER,
    ),
    "ALPN not offered": (
        H.ENCRYPTED_EXTENSIONS,
        with_extensions(AlpnSelection(b"h3")),
        A.UNSUPPORTED_EXTENSION,
    ),
    "early data": (H.ENCRYPTED_EXTENSIONS, with_extensions(EarlyData()), A.UNSUPPORTED_EXTENSION),
    "record size limit": (
        H.ENCRYPTED_EXTENSIONS,
        with_extensions(RecordSizeLimit(63)),
        A.ILLEGAL_PARAMETER,
    ),
    "request with context": (
        H.CERTIFICATE_REQUEST,
        field(certificate_request_context=b"x"),
        A.ILLEGAL_PARAMETER,
    ),
    "request without schemes": (
        H.CERTIFICATE_REQUEST,
        field(extensions=Extensions((CertificateAuthorities((b"\x30\0",)),))),
        A.MISSING_EXTENSION,
    ),
    "certificate with context": (
        H.CERTIFICATE,
        field(certificate_request_context=b"x"),
        A.ILLEGAL_PARAMETER,
    ),
    "no certificate": (H.CERTIFICATE, field(entries=()), A.BAD_CERTIFICATE),
    "certificate that does not parse": (
        H.CERTIFICATE,
        field(entries=(CertificateEntry(b"\x30\x03\x02\x01\x01"),)),
        A.BAD_CERTIFICATE,
    ),
    "unknown CA": (H.CERTIFICATE, chain(STRANGER), A.UNKNOWN_CA),
    "for clients": (H.CERTIFICATE, chain(CLIENT_ONLY), A.UNSUPPORTED_CERTIFICATE),
    "other name": (H.CERTIFICATE, chain(OTHER_NAME), A.CERTIFICATE_UNKNOWN),
    "expired": (H.CERTIFICATE, chain(EXPIRED), A.CERTIFICATE_EXPIRED),
    "staple that is none": (H.CERTIFICATE, stapled(b"\x30\0"), A.BAD_CERTIFICATE_STATUS_RESPONSE),
    "staple of another": (
        H.CERTIFICATE,
        stapled(pki().intermediate.ocsp_response(OTHER_NAME.certificate)),
        A.BAD_CERTIFICATE_STATUS_RESPONSE,
    ),
    "unasked with a certificate": (H.CERTIFICATE, entry_extension(UNASKED), A.UNSUPPORTED_EXTENSION),
    "misplaced with a certificate": (
        H.CERTIFICATE,
        entry_extension(RawExtension(ExtensionType.SERVER_NAME, b"")),
        A.ILLEGAL_PARAMETER,
    ),
    "another certificate than the key's": (H.CERTIFICATE, chain(pki().intermediate.issue()), A.DECRYPT_ERROR),
    "signature altered": (H.CERTIFICATE_VERIFY, field(signature=bytes(70)), A.DECRYPT_ERROR),
    "scheme of another curve": (
        H.CERTIFICATE_VERIFY,
        field(algorithm=SignatureScheme.ECDSA_SECP384R1_SHA384),
        A.ILLEGAL_PARAMETER,
    ),
    "SHA-1": (H.CERTIFICATE_VERIFY, field(algorithm=0x0203), A.ILLEGAL_PARAMETER),
    "Finished altered": (H.FINISHED, field(verify_data=bytes(32)), A.DECRYPT_ERROR),
    "Finished short": (H.FINISHED, field(verify_data=b""), A.DECRYPT_ERROR),
    "Finished long": (H.FINISHED, lambda m: replace(m, verify_data=m.verify_data + b"\0"), A.DECRYPT_ERROR),
    "no CertificateVerify": (H.CERTIFICATE_VERIFY, lambda _message: None, A.UNEXPECTED_MESSAGE),
    "no Certificate": (H.CERTIFICATE, lambda _message: None, A.UNEXPECTED_MESSAGE),
    "no EncryptedExtensions": (H.ENCRYPTED_EXTENSIONS, lambda _message: None, A.UNEXPECTED_MESSAGE),
    "two CertificateRequests": (H.CERTIFICATE_REQUEST, lambda m: [m, m], A.UNEXPECTED_MESSAGE),
    "two Certificates": (H.CERTIFICATE, lambda m: [m, m], A.UNEXPECTED_MESSAGE),
    "message that does not parse": (H.CERTIFICATE_VERIFY, lambda _m: b"\x0f\0\0\x01\0", A.DECODE_ERROR),
    "huge message": (H.ENCRYPTED_EXTENSIONS, lambda _m: b"\x08\xff\xff\xff", A.ILLEGAL_PARAMETER),
    "unknown message": (H.ENCRYPTED_EXTENSIONS, lambda _m: b"\x63\0\0\0", A.UNEXPECTED_MESSAGE),
}


@pytest.mark.parametrize("case", VIOLATIONS_13, ids=str)
def test_a_tls_1_3_server_is_refused(case: str) -> None:
    kind, change, alert = VIOLATIONS_13[case]
    client = Client(config())
    assert_refused(lambda: run13(FakeServer13(changes={kind: change}), client), client, alert)


def test_pkcs1_signatures_are_for_tls_1_2_only() -> None:
    change = field(algorithm=SignatureScheme.RSA_PKCS1_SHA256)
    client = Client(config())
    server = FakeServer13(RSA, changes={H.CERTIFICATE_VERIFY: change})
    assert_refused(lambda: run13(server, client), client, A.ILLEGAL_PARAMETER)


def test_alpn_must_be_one_of_ours() -> None:
    client = Client(config(alpn=("h2",)))
    server = FakeServer13(extensions=(AlpnSelection(b"http/1.1"),))
    assert_refused(lambda: run13(server, client), client, A.NO_APPLICATION_PROTOCOL)


P384_WANTED = KeyShareHelloRetryRequest(NamedGroup.SECP384R1)
RETRIES: dict[str, tuple[dict[str, object], AlertDescription]] = {
    "no change": ({"retry": ()}, A.ILLEGAL_PARAMETER),
    "share that was sent": ({"retry": (KeyShareHelloRetryRequest(NamedGroup.X25519),)}, A.ILLEGAL_PARAMETER),
    "group not offered": ({"retry": (KeyShareHelloRetryRequest(0x0019),)}, A.ILLEGAL_PARAMETER),
    "unasked extension": ({"retry": (P384_WANTED, UNASKED)}, A.UNSUPPORTED_EXTENSION),
    "another group in the end": ({"retry": (P384_WANTED,)}, A.ILLEGAL_PARAMETER),
    "suite not offered": (
        {"retry": (P384_WANTED,), "changes": {H.SERVER_HELLO: field(cipher_suite=0x1304)}},
        A.ILLEGAL_PARAMETER,
    ),
    "session id not echoed": (
        {"retry": (P384_WANTED,), "changes": {H.SERVER_HELLO: field(legacy_session_id_echo=b"")}},
        A.ILLEGAL_PARAMETER,
    ),
}


@pytest.mark.parametrize("case", RETRIES, ids=str)
def test_a_bad_hello_retry_request_is_refused(case: str) -> None:
    options, alert = RETRIES[case]
    client = Client(config())
    assert_refused(lambda: run13(FakeServer13(**options), client), client, alert)


def test_a_cookie_comes_back_and_the_shares_stay() -> None:
    client = Client(config())
    server = FakeServer13(retry=(Cookie(b"cookie"),))
    first = client.connection.data_to_send()
    server.receive_hello(first)
    shares = server.hello.extensions
    answer = client.receive(server.whole_flight())
    server.receive_hello(answer)
    assert server.hello.extensions.find(Cookie) == Cookie(b"cookie")
    assert [e for e in server.hello.extensions if not isinstance(e, Cookie)] == list(shares)
    server.finish(client.receive(server.whole_flight()))
    assert client.complete


def test_a_second_hello_retry_request_is_refused() -> None:
    client = Client(config())
    server = FakeServer13(retry=(P384_WANTED,), group=NamedGroup.SECP384R1)
    server.receive_hello(client.connection.data_to_send())
    answer = client.receive(server.whole_flight())
    server.retry = (Cookie(b"again"),)
    server.receive_hello(answer)
    assert_refused(lambda: client.receive(server.whole_flight()), client, A.UNEXPECTED_MESSAGE)


def test_the_suite_may_not_change_after_a_hello_retry_request() -> None:
    client = Client(config())
    server = FakeServer13(retry=(P384_WANTED,), group=NamedGroup.SECP384R1)
    server.receive_hello(client.connection.data_to_send())
    answer = client.receive(server.whole_flight())
    server.changes[H.SERVER_HELLO] = field(cipher_suite=CipherSuite.TLS_CHACHA20_POLY1305_SHA256)
    server.receive_hello(answer)
    assert_refused(lambda: client.receive(server.whole_flight()), client, A.ILLEGAL_PARAMETER)


def test_messages_may_not_share_a_record_across_a_change_of_keys() -> None:
    client = Client(config())
    server = FakeServer13()
    server.receive_hello(client.connection.data_to_send())
    hello = server.steps[0]
    content = hello.content + encode_message(Finished(bytes(32)))
    record = bytes(hello.protection.protect(ContentType.HANDSHAKE, content))
    assert_refused(lambda: client.receive(record), client, A.UNEXPECTED_MESSAGE)


# TLS 1.2

VIOLATIONS_12: dict[str, tuple[HandshakeType, Change, AlertDescription]] = {
    "no extended master secret": (
        H.SERVER_HELLO,
        with_extensions(without=(ExtendedMasterSecret,)),
        A.HANDSHAKE_FAILURE,
    ),
    "no secure renegotiation": (
        H.SERVER_HELLO,
        with_extensions(without=(RenegotiationInfo,)),
        A.HANDSHAKE_FAILURE,
    ),
    "renegotiation": (
        H.SERVER_HELLO,
        with_extensions(RenegotiationInfo(bytes(12)), without=(RenegotiationInfo,)),
        A.HANDSHAKE_FAILURE,
    ),
    "compressed points only": (
        H.SERVER_HELLO,
        with_extensions(EcPointFormats((1,))),
        A.ILLEGAL_PARAMETER,
    ),
    "downgrade from 1.3": (
        H.SERVER_HELLO,
        field(random=bytes(24) + DOWNGRADE_TO_TLS_1_2),
        A.ILLEGAL_PARAMETER,
    ),
    "downgrade from 1.2": (
        H.SERVER_HELLO,
        field(random=bytes(24) + DOWNGRADE_TO_TLS_1_1),
        A.ILLEGAL_PARAMETER,
    ),
    "TLS 1.1": (H.SERVER_HELLO, field(legacy_version=0x0302), A.PROTOCOL_VERSION),
    "SSL 3": (H.SERVER_HELLO, field(legacy_version=0x0300), A.PROTOCOL_VERSION),
    "CBC suite": (H.SERVER_HELLO, field(cipher_suite=0xC023), A.ILLEGAL_PARAMETER),
    "suite of TLS 1.3": (H.SERVER_HELLO, field(cipher_suite=0x1301), A.ILLEGAL_PARAMETER),
    "signalling suite": (H.SERVER_HELLO, field(cipher_suite=0x00FF), A.ILLEGAL_PARAMETER),
    "compression": (H.SERVER_HELLO, field(legacy_compression_method=1), A.ILLEGAL_PARAMETER),
    "unasked extension": (H.SERVER_HELLO, with_extensions(UNASKED), A.UNSUPPORTED_EXTENSION),
    "record size limit": (H.SERVER_HELLO, with_extensions(RecordSizeLimit(10)), A.ILLEGAL_PARAMETER),
    "no certificate": (H.CERTIFICATE, field(chain=()), A.BAD_CERTIFICATE),
    "unknown CA": (H.CERTIFICATE, field(chain=STRANGER.chain_der), A.UNKNOWN_CA),
    "other name": (H.CERTIFICATE, field(chain=OTHER_NAME.chain_der), A.CERTIFICATE_UNKNOWN),
    "RSA key with an ECDSA suite": (H.CERTIFICATE, field(chain=RSA.chain_der), A.UNSUPPORTED_CERTIFICATE),
    "staple not promised": (
        H.CERTIFICATE,
        lambda m: [m, CertificateStatus(b"\x30\0")],
        A.UNEXPECTED_MESSAGE,
    ),
    "hybrid group": (H.SERVER_KEY_EXCHANGE, field(group=NamedGroup.X25519MLKEM768), A.DECRYPT_ERROR),
    "signature altered": (H.SERVER_KEY_EXCHANGE, field(signature=bytes(70)), A.DECRYPT_ERROR),
    "SHA-1": (H.SERVER_KEY_EXCHANGE, field(algorithm=0x0203), A.ILLEGAL_PARAMETER),
    "RSA signature": (
        H.SERVER_KEY_EXCHANGE,
        field(algorithm=SignatureScheme.RSA_PKCS1_SHA256),
        A.ILLEGAL_PARAMETER,
    ),
    "another share than signed": (H.SERVER_KEY_EXCHANGE, field(public=bytes(32)), A.DECRYPT_ERROR),
    "no ServerKeyExchange": (H.SERVER_KEY_EXCHANGE, lambda _m: None, A.UNEXPECTED_MESSAGE),
    "two requests": (H.CERTIFICATE_REQUEST, lambda m: [m, m], A.UNEXPECTED_MESSAGE),
    "ticket not promised": (
        H.FINISHED,
        lambda m: [NewSessionTicket12(1, b"t"), m],
        A.UNEXPECTED_MESSAGE,
    ),
    "Finished altered": (H.FINISHED, field(verify_data=bytes(12)), A.DECRYPT_ERROR),
    "Finished short": (H.FINISHED, field(verify_data=bytes(11)), A.DECRYPT_ERROR),
}


@pytest.mark.parametrize("case", VIOLATIONS_12, ids=str)
def test_a_tls_1_2_server_is_refused(case: str) -> None:
    kind, change, alert = VIOLATIONS_12[case]
    client = Client(config())
    assert_refused(lambda: run12(FakeServer12(changes={kind: change}), client), client, alert)


def test_a_tls_1_2_server_may_not_pretend_to_resume() -> None:
    client = Client(config())
    server = FakeServer12()
    hello = client.connection.data_to_send()
    server.session_id = hello[44:76]
    server.receive_hello(hello)
    assert_refused(lambda: client.receive(server.whole_flight()), client, A.ILLEGAL_PARAMETER)


def test_a_promised_ticket_must_come() -> None:
    client = Client(config())
    server = FakeServer12(extensions=(SessionTicket(),))
    assert_refused(lambda: run12(server, client), client, A.UNEXPECTED_MESSAGE)


def test_without_tls_1_2_a_server_of_it_is_told_the_version() -> None:
    client = Client(config(min_version=TLS13))
    hello = client.connection.data_to_send()
    server = FakeServer12(changes={H.SERVER_HELLO: with_extensions(without=(ExtendedMasterSecret,))})
    server.receive_hello(hello)
    assert_refused(lambda: client.receive(server.whole_flight()), client, A.PROTOCOL_VERSION)


def test_without_tls_1_3_a_server_of_it_is_refused() -> None:
    client = Client(config(max_version=TLS12))
    server = FakeServer12(changes={H.SERVER_HELLO: with_extensions(SelectedVersion(0x0304))})
    server.receive_hello(client.connection.data_to_send())
    assert_refused(lambda: client.receive(server.whole_flight()), client, A.UNSUPPORTED_EXTENSION)


# Records


def first_flight(version: ProtocolVersion) -> tuple[Client, FakeServer13 | FakeServer12]:
    client = Client(config())
    server = FakeServer13() if version is TLS13 else FakeServer12()
    server.receive_hello(client.connection.data_to_send())
    return client, server


BOTH = pytest.mark.parametrize("version", [TLS12, TLS13], ids=lambda version: version.name)


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


def test_a_peer_error_is_a_peer_error() -> None:
    assert issubclass(UnexpectedMessage, PeerError)
