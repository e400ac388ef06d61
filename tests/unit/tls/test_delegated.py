"""A session from its key block on: data, its end, and what the peer must not do."""

from __future__ import annotations

import dataclasses
import os

import pytest

from tests.support.delegated_peer import (
    ALERT,
    CLOSE_NOTIFY,
    DATA,
    GCM_12,
    GCM_13,
    HANDSHAKE,
    SUITES,
    TICKET,
    UPDATE,
    UPDATE_REQUESTED,
    Peer,
    assert_ends,
    both_versions,
    events,
    key_block,
    session,
)
from tests.support.tls_messages import MESSAGES, TLS_1_2
from vmtoken.tls.codes import (
    AlertDescription,
    AlertLevel,
    CipherSuite,
    ContentType,
    HandshakeType,
    ProtocolVersion,
)
from vmtoken.tls.delegated import ROOM_TO_SPARE, DelegatedConnection
from vmtoken.tls.errors import (
    AlertReceived,
    BadRecordMac,
    ConnectionClosed,
    IllegalParameter,
    LocalError,
    MalformedMessage,
    PeerError,
    RecordOverflow,
    TlsError,
    TooManyRecords,
    TruncatedStream,
    UnexpectedMessage,
)
from vmtoken.tls.events import Closed, DataReceived, TicketReceived
from vmtoken.tls.key_block import MAX_PLAINTEXT
from vmtoken.tls.messages import (
    HelloRequest,
    NewSessionTicket12,
    encode_message,
)
from vmtoken.tls.record import FloodGuard

# Data


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.code.name)
@pytest.mark.parametrize("length", [1, MAX_PLAINTEXT, MAX_PLAINTEXT + 1, 300_000])
def test_data_both_ways(suite: object, length: int) -> None:
    connection, peer = session(suite.code)  # type: ignore[attr-defined]
    data = os.urandom(length)
    connection.send_data(data)
    opened = peer.open(connection.data_to_send())
    assert {content_type for content_type, _ in opened} == {DATA}
    assert b"".join(content for _, content in opened) == data
    connection.receive_data(peer.send(DATA, data))
    assert b"".join(event.data for event in events(connection)) == data  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_data_of_any_kind(kind: type) -> None:
    connection, peer = session()
    connection.send_data(kind(b"data"))
    assert peer.open(connection.data_to_send()) == [(DATA, b"data")]
    connection.receive_data(kind(peer.send(DATA, b"answer")))
    assert events(connection) == [DataReceived(b"answer")]


def test_no_data_is_no_record() -> None:
    connection, _ = session()
    connection.send_data(b"")
    assert connection.data_to_send() == b""


@both_versions
def test_octets_one_by_one(code: CipherSuite) -> None:
    connection, peer = session(code)
    stream = peer.send(DATA, b"abc") + peer.send(DATA, b"def") + peer.send(ALERT, CLOSE_NOTIFY)
    told: list[object] = []
    for position in range(len(stream)):
        connection.receive_data(stream[position : position + 1])
        told += events(connection)
    assert told == [DataReceived(b"abc"), DataReceived(b"def"), Closed()]


def test_the_buffer_of_the_caller_is_free_again() -> None:
    connection, peer = session()
    stream = peer.send(DATA, b"abc") + peer.send(DATA, b"def")
    buffer = bytearray(stream)
    connection.receive_data(memoryview(buffer)[: len(stream) - 3])
    buffer[:] = bytes(len(buffer))
    buffer.clear()  # raises if a view of it were kept
    connection.receive_data(stream[-3:])
    assert events(connection) == [DataReceived(b"abc"), DataReceived(b"def")]


@both_versions
@pytest.mark.parametrize("size", [1, 5, 100, 16384, 65536, 1 << 20])
def test_data_into_a_buffer_that_is_used_again(code: CipherSuite, size: int) -> None:
    connection, peer = session(code)
    data = os.urandom(200_000)
    stream = peer.send(DATA, data) + peer.send(ALERT, CLOSE_NOTIFY)
    room, received = bytearray(size + ROOM_TO_SPARE), b""
    for start in range(0, len(stream), size):
        length = connection.receive_into(stream[start : start + size], room)
        received += room[:length]
    assert received == data
    assert events(connection) == [Closed()]
    assert connection.receive_into(b"x", room) == 0
    room.clear()  # raises if a view of it were kept


def test_data_around_a_ticket_is_one_piece_in_a_buffer() -> None:
    connection, peer = session()
    stream = peer.send(DATA, b"before") + peer.send(HANDSHAKE, TICKET) + peer.send(DATA, b"after")
    room = bytearray(len(stream) + ROOM_TO_SPARE)
    assert room[: connection.receive_into(stream, room)] == b"beforeafter"
    assert events(connection) == [TicketReceived(TICKET)]


@both_versions
def test_nothing_that_does_not_verify_gets_into_a_buffer(code: CipherSuite) -> None:
    connection, peer = session(code)
    good, forged = peer.send(DATA, b"good"), bytearray(peer.send(DATA, b"forged" * 100))
    forged[-1] ^= 1
    room = bytearray(len(good) + len(forged) + ROOM_TO_SPARE)
    assert connection.receive_into(good + forged, room) == 4
    assert room.rstrip(b"\x00") == b"good"
    assert_ends(connection, peer, BadRecordMac)


@both_versions
@pytest.mark.parametrize(
    ("content_type", "content"), [(None, b""), (HANDSHAKE, b"\x04\x00\x00\x01\x00"), (ALERT, b"\x02\x28")]
)
def test_a_failure_keeps_no_buffer(code: CipherSuite, content_type: int | None, content: bytes) -> None:
    """Whoever reports the error later must not hold what was being decrypted."""
    connection, peer = session(code)
    octets = bytes(100) if content_type is None else peer.send(content_type, content)
    forged = b"\x17\x03\x03\x00\x64" + octets if content_type is None else octets
    buffer = bytearray(forged)
    room = bytearray(len(buffer) + ROOM_TO_SPARE)
    connection.receive_into(memoryview(buffer), room)
    with pytest.raises(TlsError) as error:
        connection.next_event()
    assert error.value
    buffer.clear()  # raises if a view of it were kept
    room.clear()


def test_a_buffer_needs_room_for_a_record_that_was_cut() -> None:
    connection, _ = session()
    with pytest.raises(LocalError, match="octets of room"):
        connection.receive_into(bytes(100), bytearray(99 + ROOM_TO_SPARE))


def test_limits_of_the_key_block() -> None:
    connection, peer = session(send_limit=100, receive_limit=200)
    connection.send_data(bytes(250))
    assert [len(content) for _, content in peer.open(connection.data_to_send())] == [100, 100, 50]
    connection.receive_data(peer.send(DATA, bytes(200)))
    assert events(connection) == [DataReceived(bytes(200))]
    connection.receive_data(peer.send(DATA, bytes(201)))
    assert_ends(connection, peer, RecordOverflow)


def test_sequence_numbers_go_on_where_the_token_stopped() -> None:
    connection, peer = session(GCM_12, client_sequence=7, server_sequence=9)
    connection.send_data(b"a")
    record = connection.data_to_send()
    assert record[5:13] == (7).to_bytes(8, "big")
    assert peer.open(record) == [(DATA, b"a")]
    connection.receive_data(peer.send(DATA, b"b"))
    assert events(connection) == [DataReceived(b"b")]


def test_a_wrong_sequence_number_fails() -> None:
    block = key_block(server_sequence=1)
    peer = Peer(dataclasses.replace(block, server_sequence=0))
    connection = DelegatedConnection(block)
    connection.receive_data(peer.send(DATA, b"x"))
    assert_ends(connection, peer, BadRecordMac)


def test_the_key_block_may_be_wiped_at_once() -> None:
    block = key_block()
    peer, connection = Peer(block), DelegatedConnection(block)
    block.client_secret.wipe()
    block.server_secret.wipe()
    connection.update_keys()
    connection.receive_data(peer.send(HANDSHAKE, UPDATE))
    peer.update()
    connection.receive_data(peer.send(DATA, b"x"))
    assert events(connection) == [DataReceived(b"x")]


# The end


@both_versions
def test_half_close(code: CipherSuite) -> None:
    connection, peer = session(code)
    connection.send_data(b"last")
    connection.close()
    connection.close()
    assert peer.open(connection.data_to_send()) == [(DATA, b"last"), (ALERT, CLOSE_NOTIFY)]
    with pytest.raises(ConnectionClosed):
        connection.send_data(b"more")
    connection.receive_data(peer.send(DATA, b"answer"))
    assert events(connection) == [DataReceived(b"answer")]
    connection.receive_data(peer.send(ALERT, CLOSE_NOTIFY))
    assert events(connection) == [Closed()]


@both_versions
def test_close_notify_of_the_peer(code: CipherSuite) -> None:
    connection, peer = session(code)
    connection.receive_data(peer.send(DATA, b"x") + peer.send(ALERT, CLOSE_NOTIFY) + b"whatever follows")
    assert events(connection) == [DataReceived(b"x"), Closed()]
    assert connection.next_event() == Closed()
    connection.receive_data(b"ignored")
    connection.receive_eof()
    assert connection.next_event() == Closed()
    connection.send_data(b"we may go on")
    assert peer.open(connection.data_to_send()) == [(DATA, b"we may go on")]


@both_versions
def test_truncation(code: CipherSuite) -> None:
    connection, peer = session(code)
    connection.receive_data(peer.send(DATA, b"x") + peer.send(DATA, b"cut")[:-1])
    connection.receive_eof()
    assert connection.next_event() == DataReceived(b"x")
    for _ in range(2):
        with pytest.raises(TruncatedStream):
            connection.next_event()
    assert connection.data_to_send() == b""


@both_versions
@pytest.mark.parametrize("level", [AlertLevel.FATAL, 0])
def test_fatal_alert(code: CipherSuite, level: int) -> None:
    connection, peer = session(code)
    connection.receive_data(peer.send(DATA, b"x") + peer.send(ALERT, bytes((level, 48))) + b"junk")
    assert connection.next_event() == DataReceived(b"x")
    for _ in range(2):
        with pytest.raises(AlertReceived) as error:
            connection.next_event()
        assert error.value.description == AlertDescription.UNKNOWN_CA
    with pytest.raises(ConnectionClosed):
        connection.send_data(b"more")
    connection.close()
    assert connection.data_to_send() == b""


def test_warnings_are_passed_over_in_tls12_only() -> None:
    warning = bytes((AlertLevel.WARNING, AlertDescription.UNRECOGNIZED_NAME))
    connection, peer = session(GCM_12)
    connection.receive_data(peer.send(ALERT, warning) + peer.send(DATA, b"x"))
    assert events(connection) == [DataReceived(b"x")]
    connection, peer = session(GCM_13)
    connection.receive_data(peer.send(ALERT, warning))
    with pytest.raises(AlertReceived):
        connection.next_event()


@both_versions
def test_user_canceled_is_followed_by_something(code: CipherSuite) -> None:
    connection, peer = session(code)
    user_canceled = bytes((AlertLevel.WARNING, AlertDescription.USER_CANCELED))
    connection.receive_data(peer.send(ALERT, user_canceled) + peer.send(ALERT, CLOSE_NOTIFY))
    assert events(connection) == [Closed()]


# What the peer must not do


@both_versions
@pytest.mark.parametrize(
    ("content_type", "content", "error"),
    [
        (ContentType.CHANGE_CIPHER_SPEC, b"\x01", UnexpectedMessage),
        (HANDSHAKE, b"", UnexpectedMessage),
        (ALERT, b"", MalformedMessage),
        (ALERT, b"\x02", MalformedMessage),
        (ALERT, b"\x01\x00\x01\x00", MalformedMessage),
        (HANDSHAKE, b"\x0b\xff\xff\xff", IllegalParameter),
    ],
)
def test_content_that_is_forbidden(
    code: CipherSuite, content_type: int, content: bytes, error: type[PeerError]
) -> None:
    connection, peer = session(code)
    connection.receive_data(peer.send(DATA, b"before") + peer.send(content_type, content))
    assert connection.next_event() == DataReceived(b"before")
    assert_ends(connection, peer, error)


@pytest.mark.parametrize(
    ("version", "encoded"),
    [
        pytest.param(version, encode_message(message), id=f"{version.name}-{type(message).__name__}")
        for version, message in MESSAGES
        if message.handshake_type
        not in (HandshakeType.HELLO_REQUEST, HandshakeType.NEW_SESSION_TICKET, HandshakeType.KEY_UPDATE)
    ],
)
def test_every_other_handshake_message_is_unexpected(version: ProtocolVersion, encoded: bytes) -> None:
    connection, peer = session(GCM_12 if version == TLS_1_2 else GCM_13)
    connection.receive_data(peer.send(HANDSHAKE, encoded))
    assert_ends(connection, peer, UnexpectedMessage)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (GCM_12, encode_message(NewSessionTicket12(0, b"ticket"))),
        (GCM_12, UPDATE),
        (GCM_13, encode_message(HelloRequest())),
    ],
    ids=["ticket in TLS 1.2", "KeyUpdate in TLS 1.2", "HelloRequest in TLS 1.3"],
)
def test_messages_of_the_other_version(code: CipherSuite, message: bytes) -> None:
    connection, peer = session(code)
    connection.receive_data(peer.send(HANDSHAKE, message))
    assert_ends(connection, peer, UnexpectedMessage)


@both_versions
@pytest.mark.parametrize("between", [(DATA, b"x"), (ALERT, CLOSE_NOTIFY)])
def test_nothing_comes_between_the_parts_of_a_message(code: CipherSuite, between: tuple[int, bytes]) -> None:
    """RFC 8446 section 5.1."""
    connection, peer = session(code)
    connection.receive_data(peer.send(HANDSHAKE, TICKET[:5]) + peer.send(*between))
    assert_ends(connection, peer, UnexpectedMessage)


@both_versions
def test_changed_record(code: CipherSuite) -> None:
    connection, peer = session(code)
    record = bytearray(peer.send(DATA, b"data"))
    record[-1] ^= 1
    connection.receive_data(record)
    assert_ends(connection, peer, BadRecordMac)


@both_versions
def test_octets_that_are_no_tls(code: CipherSuite) -> None:
    connection, peer = session(code)
    connection.receive_data(b"HTTP/1.1 400 Bad Request\r\n")
    assert_ends(connection, peer, UnexpectedMessage)


# Tickets


def test_tickets_are_given_out_between_data() -> None:
    connection, peer = session()
    stream = peer.send(HANDSHAKE, TICKET + TICKET) + peer.send(DATA, b"a") + peer.send(HANDSHAKE, TICKET[:7])
    connection.receive_data(stream + peer.send(HANDSHAKE, TICKET[7:]) + peer.send(DATA, b"b"))
    ticket = TicketReceived(TICKET)
    assert events(connection) == [ticket, ticket, DataReceived(b"a"), ticket, DataReceived(b"b")]


def test_a_ticket_that_does_not_parse() -> None:
    connection, peer = session()
    connection.receive_data(peer.send(HANDSHAKE, b"\x04\x00\x00\x01\x00"))
    assert_ends(connection, peer, MalformedMessage)


# Renegotiation


def test_renegotiation_is_refused_and_the_session_goes_on() -> None:
    connection, peer = session(GCM_12)
    connection.receive_data(peer.send(HANDSHAKE, encode_message(HelloRequest())) + peer.send(DATA, b"x"))
    assert events(connection) == [DataReceived(b"x")]
    no_renegotiation = bytes((AlertLevel.WARNING, AlertDescription.NO_RENEGOTIATION))
    connection.send_data(b"y")
    assert peer.open(connection.data_to_send()) == [(ALERT, no_renegotiation), (DATA, b"y")]


# Floods


def flood(connection: DelegatedConnection, peer: Peer, content_type: int, content: bytes, times: int) -> None:
    for _ in range(times):
        octets = peer.send(content_type, content)
        if content in (UPDATE, UPDATE_REQUESTED):
            peer.update()
        connection.receive_data(octets)


@pytest.mark.parametrize(
    ("code", "content_type", "content", "most"),
    [
        (GCM_12, DATA, b"", FloodGuard.MAX_EMPTY_RECORDS),
        (GCM_13, DATA, b"", FloodGuard.MAX_EMPTY_RECORDS),
        (GCM_12, ALERT, b"\x01\x70", FloodGuard.MAX_WARNINGS),
        (GCM_13, ALERT, b"\x01\x5a", FloodGuard.MAX_WARNINGS),
        (GCM_12, HANDSHAKE, encode_message(HelloRequest()), FloodGuard.MAX_WARNINGS),
        (GCM_13, HANDSHAKE, UPDATE, FloodGuard.MAX_KEY_UPDATES),
        (GCM_13, HANDSHAKE, UPDATE_REQUESTED, FloodGuard.MAX_KEY_UPDATES),
    ],
    ids=[
        "empty 1.2",
        "empty 1.3",
        "warnings",
        "user_canceled",
        "HelloRequest",
        "KeyUpdate",
        "KeyUpdate requested",
    ],
)
def test_floods_end(code: CipherSuite, content_type: int, content: bytes, most: int) -> None:
    connection, peer = session(code)
    for _ in range(2):
        flood(connection, peer, content_type, content, most)
        flood(connection, peer, DATA, b"x", 1)
        assert events(connection) == [DataReceived(b"x")]
        peer.open(connection.data_to_send())
    flood(connection, peer, content_type, content, most)
    peer.open(connection.data_to_send())
    flood(connection, peer, content_type, content, 1)
    assert_ends(connection, peer, TooManyRecords)


# Mutations


@both_versions
def test_a_stream_changed_anywhere_gives_a_prefix_and_an_error(code: CipherSuite) -> None:
    block = key_block(code)
    peer = Peer(block)
    stream = b"".join(peer.send(DATA, bytes((number,)) * 3) for number in range(4))
    for position in range(len(stream)):
        connection = DelegatedConnection(block)
        connection.receive_data(
            stream[:position] + bytes((stream[position] ^ 0x55,)) + stream[position + 1 :]
        )
        connection.receive_eof()
        received = b""
        with pytest.raises(TlsError):  # noqa: PT012 (what comes before the error counts)
            while isinstance(event := connection.next_event(), DataReceived):
                received += event.data
        assert b"\x00\x00\x00\x01\x01\x01\x02\x02\x02\x03\x03\x03".startswith(received)
        assert len(received) < 12


def test_nothing_printable_is_secret() -> None:
    connection, _ = session()
    assert repr(connection).startswith("<vmtoken.tls.delegated.DelegatedConnection object")
