from __future__ import annotations

import pytest

from tests.support.tls_messages import MESSAGES, TLS_1_2, TLS_1_3
from vmtoken.codec import Writer
from vmtoken.tls import messages
from vmtoken.tls.codes import HandshakeType, NamedGroup, ProtocolVersion, SignatureScheme
from vmtoken.tls.errors import MalformedMessage, PeerError, UnexpectedMessage
from vmtoken.tls.extensions import Extensions, OfferedPsks, PskIdentity, RawExtension
from vmtoken.tls.messages import (
    HELLO_RETRY_REQUEST_RANDOM,
    MAX_CERTIFICATES,
    Certificate12,
    Certificate13,
    CertificateEntry,
    ClientHello,
    HandshakeMessage,
    HelloRetryRequest,
    NewSessionTicket12,
    NewSessionTicket13,
    ServerHello,
    ServerKeyExchange,
    decode_message,
    encode_message,
)

CASES = [
    pytest.param(version, message, id=f"{version.name}-{type(message).__name__}-{number}")
    for number, (version, message) in enumerate(MESSAGES)
]


@pytest.mark.parametrize(("version", "message"), CASES)
def test_decoded_is_what_was_encoded(version: ProtocolVersion, message: HandshakeMessage) -> None:
    encoded = encode_message(message)
    assert encoded[0] == message.handshake_type
    assert int.from_bytes(encoded[1:4], "big") == len(encoded) - 4
    decoded = decode_message(encoded, version)
    assert decoded == message
    assert type(decoded) is type(message)


@pytest.mark.parametrize(("version", "message"), CASES)
def test_truncated_anywhere(version: ProtocolVersion, message: HandshakeMessage) -> None:
    encoded = encode_message(message)
    for length in range(len(encoded)):
        with pytest.raises(MalformedMessage):
            decode_message(encoded[:length], version)


@pytest.mark.parametrize(("version", "message"), CASES)
def test_body_cut_with_a_header_that_agrees(version: ProtocolVersion, message: HandshakeMessage) -> None:
    encoded = encode_message(message)
    for length in range(len(encoded) - 4):
        try:
            decoded = decode_message(with_length(encoded[: 4 + length]), version)
        except MalformedMessage:
            continue
        assert decoded != message  # Finished, or a hello without its extensions
        assert encode_message(decoded)[4:] == encoded[4 : 4 + length]


@pytest.mark.parametrize(("version", "message"), CASES)
def test_tail(version: ProtocolVersion, message: HandshakeMessage) -> None:
    encoded = encode_message(message)
    with pytest.raises(MalformedMessage, match="too many"):
        decode_message(encoded + b"\x00", version)
    if message.handshake_type != HandshakeType.FINISHED:
        with pytest.raises(MalformedMessage):
            decode_message(with_length(encoded + b"\x00"), version)


@pytest.mark.parametrize(("version", "message"), CASES)
def test_mutated_anywhere(version: ProtocolVersion, message: HandshakeMessage) -> None:
    encoded = encode_message(message)
    for position in range(len(encoded)):
        for value in (0x00, 0x01, 0x7F, 0xFF, encoded[position] ^ 0x80):
            mutated = encoded[:position] + bytes((value,)) + encoded[position + 1 :]
            try:
                decode_message(mutated, version)
            except PeerError:
                continue


def with_length(message: bytes) -> bytes:
    return message[:1] + (len(message) - 4).to_bytes(3, "big") + message[4:]


def all_types() -> list[int]:
    return [*HandshakeType, 3, 6, 99, 255]


@pytest.mark.parametrize("version", [None, TLS_1_2, TLS_1_3])
def test_type_that_the_version_does_not_know(version: ProtocolVersion | None) -> None:
    known = {message.handshake_type for belongs, message in MESSAGES if belongs is version}
    known |= {HandshakeType.CLIENT_HELLO, HandshakeType.SERVER_HELLO}
    if version is None:
        known |= {HandshakeType.HELLO_REQUEST}
    for handshake_type in set(all_types()) - known:
        with pytest.raises(UnexpectedMessage) as error:
            decode_message(bytes((handshake_type, 0, 0, 0)), version)
        assert error.value.got == handshake_type


def test_hello_retry_request_is_known_by_its_random() -> None:
    assert HELLO_RETRY_REQUEST_RANDOM.hex().startswith("cf21ad74e59a6111")  # RFC 8446 section 4.1.3
    message = HelloRetryRequest(HELLO_RETRY_REQUEST_RANDOM, b"", 0x1301)
    assert type(decode_message(encode_message(message))) is HelloRetryRequest
    assert not isinstance(decode_message(encode_message(message)), ServerHello)


def test_version_of_a_server_hello() -> None:
    versions = [message.version for _, message in MESSAGES if isinstance(message, ServerHello)]
    assert versions == [TLS_1_3, TLS_1_2, TLS_1_2]


def test_an_empty_list_of_extensions_parses() -> None:
    hello = encode_message(ServerHello(bytes(32), b"", 0xC02B))
    assert decode_message(with_length(hello + b"\x00\x00")) == decode_message(hello)


def test_binders_length() -> None:
    psks = OfferedPsks((PskIdentity(b"a", 0), PskIdentity(b"b", 0)), (bytes(32), bytes(48)))
    hello = ClientHello(bytes(32), b"", (0x1301,), Extensions((psks,)))
    assert hello.binders_length == 2 + 33 + 49
    truncated = encode_message(hello)[: -hello.binders_length]
    assert truncated.endswith(b"b" + bytes(4))
    assert ClientHello(bytes(32), b"", (0x1301,)).binders_length == 0


def test_params_of_the_key_exchange_are_what_is_signed() -> None:
    message = ServerKeyExchange(NamedGroup.X25519, b"public", SignatureScheme.ED25519, b"signature")
    assert message.params == b"\x03\x00\x1d\x06public"
    assert encode_message(message)[4:].startswith(message.params)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (TLS_1_2, Certificate12((b"x",) * (MAX_CERTIFICATES + 1))),
        (TLS_1_3, Certificate13(b"", (CertificateEntry(b"x"),) * (MAX_CERTIFICATES + 1))),
    ],
)
def test_chain_that_is_too_long(version: ProtocolVersion, message: HandshakeMessage) -> None:
    with pytest.raises(MalformedMessage, match="more than 16 certificates"):
        decode_message(encode_message(message), version)


def test_a_plain_explicit_curve_is_refused() -> None:
    writer = Writer()
    ServerKeyExchange(29, b"public", 0x0807, b"").encode(writer)
    body = b"\x01" + writer.getvalue()[1:]
    with pytest.raises(MalformedMessage, match="named"):
        decode_message(with_length(b"\x0c\x00\x00\x00" + body), TLS_1_2)


def test_a_ticket_is_not_printed() -> None:
    for ticket in (NewSessionTicket12(1, b"xyzzy"), NewSessionTicket13(1, 4711, b"n", b"xyzzy")):
        assert "xyzzy" not in repr(ticket)
        assert "4711" not in repr(ticket)


def test_every_message_class_has_an_example() -> None:
    classes = {
        value
        for name, value in vars(messages).items()
        if isinstance(value, type) and hasattr(value, "handshake_type") and not name.startswith("_")
    } - {messages.HandshakeMessage}
    assert classes == {type(message) for _, message in MESSAGES}


def test_unknown_extensions_survive() -> None:
    hello = ClientHello(bytes(32), b"", (1,), Extensions((RawExtension(0xFAFA, b"x"),)))
    decoded = decode_message(encode_message(hello))
    assert isinstance(decoded, ClientHello)
    assert 0xFAFA in decoded.extensions
