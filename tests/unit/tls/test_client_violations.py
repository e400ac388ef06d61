"""Servers that break the protocol: each is refused with the alert that it is owed, and gets no answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.fakes.tls_server import FakeServer12, FakeServer13
from tests.support.memory import Client, config
from tests.support.pki import NOW, KeyKind, Usage, pki, server_identity
from tests.support.refusals import assert_refused, run12, run13
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
    SignatureAlgorithms,
)
from vmtoken.tls.messages import (
    DOWNGRADE_TO_TLS_1_1,
    DOWNGRADE_TO_TLS_1_2,
    CertificateEntry,
    CertificateStatus,
    Finished,
    HandshakeMessage,
    NewSessionTicket12,
    encode_message,
)
from vmtoken.tls.signatures import DEFAULT_SCHEMES

A, H = AlertDescription, HandshakeType
TLS12, TLS13 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
Change = Callable[[HandshakeMessage], object]


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


def test_what_is_unknown_is_tolerated_where_it_may_be() -> None:
    """GREASE (RFC 8701) in a request, and in the lists of it."""

    def grease(message: HandshakeMessage) -> HandshakeMessage:
        schemes = SignatureAlgorithms((0x0A0A, 0xFAFA, *DEFAULT_SCHEMES))
        return replace(message, extensions=Extensions((RawExtension(0x2A2A, b""), schemes)))

    client = Client(config())
    run13(FakeServer13(changes={H.CERTIFICATE_REQUEST: grease}), client)
    assert client.complete
    assert client.complete.client_certificate_sent
    client = Client(config())
    types = field(certificate_types=(1, 64, 0xEA), supported_signature_algorithms=(0x0A0A, *DEFAULT_SCHEMES))
    run12(FakeServer12(changes={H.CERTIFICATE_REQUEST: types}), client)
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


def test_the_version_may_not_change_after_a_hello_retry_request() -> None:
    client = Client(config())
    server = FakeServer13(retry=(P384_WANTED,), group=NamedGroup.SECP384R1)
    server.receive_hello(client.connection.data_to_send())
    answer = client.receive(server.whole_flight())
    server.changes[H.SERVER_HELLO] = with_extensions(without=(SelectedVersion, KeyShareServerHello))
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
