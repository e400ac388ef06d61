"""Two ends of one key block: the peer is the same class with the secrets the other way round.

What the peer never does by itself is protected by hand: `Peer.send`.
"""

from __future__ import annotations

import dataclasses
import os

import pytest

from tests.support.tls_messages import MESSAGES, TLS_1_2
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import (
    AlertDescription,
    AlertLevel,
    CipherSuite,
    ContentType,
    HandshakeType,
    KeyUpdateRequest,
    ProtocolVersion,
)
from vmtoken.tls.delegated import ALERT_RESERVE, ROOM_TO_SPARE, UPDATE_MARGIN, DelegatedConnection
from vmtoken.tls.errors import (
    AlertReceived,
    BadRecordMac,
    ConnectionClosed,
    IllegalParameter,
    LocalError,
    MalformedMessage,
    PeerError,
    RecordOverflow,
    SequenceExhausted,
    TlsError,
    TooManyRecords,
    TruncatedStream,
    UnexpectedMessage,
)
from vmtoken.tls.events import Closed, DataReceived, NeedData, TicketReceived
from vmtoken.tls.key_block import MAX_PLAINTEXT, KeyBlock
from vmtoken.tls.key_schedule import next_traffic_secret
from vmtoken.tls.messages import (
    HelloRequest,
    KeyUpdate,
    NewSessionTicket12,
    NewSessionTicket13,
    encode_message,
)
from vmtoken.tls.record import FloodGuard, RecordReader, record_protection
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


# KeyUpdate


def test_peer_updates_its_key() -> None:
    connection, peer = session()
    for number in range(3):
        octets = peer.send(HANDSHAKE, UPDATE)
        peer.update()
        connection.receive_data(octets + peer.send(DATA, bytes((number,))))
        assert events(connection) == [DataReceived(bytes((number,)))]
    assert connection.data_to_send() == b""


def test_peer_asks_for_ours() -> None:
    connection, peer = session()
    connection.receive_data(peer.send(HANDSHAKE, UPDATE_REQUESTED))
    peer.update()
    connection.send_data(b"x")
    assert peer.open(connection.data_to_send()) == [(HANDSHAKE, UPDATE), (DATA, b"x")]
    connection.receive_data(peer.send(DATA, b"y"))
    assert events(connection) == [DataReceived(b"y")]


def test_many_requests_at_once_get_one_answer() -> None:
    """RFC 8446 section 4.6.3."""
    connection, peer = session()
    stream = b""
    for _ in range(5):
        stream += peer.send(HANDSHAKE, UPDATE_REQUESTED)
        peer.update()
    connection.receive_data(stream)
    assert peer.open(connection.data_to_send()) == [(HANDSHAKE, UPDATE)]


def test_no_answer_after_close_notify() -> None:
    connection, peer = session()
    connection.close()
    peer.open(connection.data_to_send())
    stream = peer.send(HANDSHAKE, UPDATE_REQUESTED)
    peer.update()
    connection.receive_data(stream + peer.send(DATA, b"x"))
    assert events(connection) == [DataReceived(b"x")]
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("request_peer", [False, True])
def test_we_update_our_key(request_peer: bool) -> None:
    connection, peer = session()
    connection.send_data(b"old")
    connection.update_keys(request_peer=request_peer)
    connection.send_data(b"new")
    update = UPDATE_REQUESTED if request_peer else UPDATE
    assert peer.open(connection.data_to_send()) == [(DATA, b"old"), (HANDSHAKE, update), (DATA, b"new")]


def test_tls12_has_no_key_update() -> None:
    connection, _ = session(GCM_12)
    with pytest.raises(LocalError, match="no KeyUpdate"):
        connection.update_keys()


def test_no_key_update_after_close() -> None:
    connection, _ = session()
    connection.close()
    with pytest.raises(ConnectionClosed):
        connection.update_keys()


def test_a_message_after_key_update_in_its_record() -> None:
    connection, peer = session()
    connection.receive_data(peer.send(HANDSHAKE, UPDATE + TICKET))
    assert_ends(connection, peer, UnexpectedMessage)


@pytest.mark.parametrize("value", [2, 255])
def test_a_key_update_that_asks_for_something_unknown(value: int) -> None:
    connection, peer = session()
    connection.receive_data(peer.send(HANDSHAKE, encode_message(KeyUpdate(value))))
    assert_ends(connection, peer, IllegalParameter)


def test_old_keys_are_of_no_use_after_an_update() -> None:
    connection, peer = session()
    connection.receive_data(peer.send(HANDSHAKE, UPDATE) + peer.send(DATA, b"still the old key"))
    assert_ends(connection, peer, BadRecordMac)


# Worn-out keys


def limit(code: CipherSuite) -> int:
    suite = suite_of(code)
    assert suite is not None
    return suite.record_limit


def test_our_key_is_replaced_before_it_is_used_up() -> None:
    connection, peer = session(client_sequence=limit(GCM_13) - UPDATE_MARGIN - 1)
    connection.send_data(b"1")
    connection.send_data(b"2")
    connection.send_data(b"3")
    opened = peer.open(connection.data_to_send())
    assert opened == [(DATA, b"1"), (HANDSHAKE, UPDATE), (DATA, b"2"), (DATA, b"3")]


def test_a_key_that_protects_few_large_records_is_replaced_before_them() -> None:
    connection, peer = session(client_sequence=limit(GCM_13) - UPDATE_MARGIN - 3)
    connection.send_data(bytes(4 * MAX_PLAINTEXT))
    assert [content_type for content_type, _ in peer.open(connection.data_to_send())] == [HANDSHAKE] + [
        DATA
    ] * 4


def test_the_peer_is_asked_once_to_replace_its_key() -> None:
    connection, peer = session(server_sequence=limit(GCM_13) - UPDATE_MARGIN - 1)
    connection.receive_data(peer.send(DATA, b"1"))
    assert connection.data_to_send() == b""
    connection.receive_data(peer.send(DATA, b"2"))
    assert peer.open(connection.data_to_send()) == [(HANDSHAKE, UPDATE_REQUESTED)]
    connection.receive_data(peer.send(DATA, b"3"))
    assert connection.data_to_send() == b""
    octets = peer.send(HANDSHAKE, UPDATE)
    peer.update()
    connection.receive_data(octets + peer.send(DATA, b"4"))
    assert connection.data_to_send() == b""
    assert b"".join(e.data for e in events(connection) if isinstance(e, DataReceived)) == b"1234"


def test_a_used_up_key_of_tls12_ends_the_session_in_order() -> None:
    connection, peer = session(GCM_12, client_sequence=limit(GCM_12) - ALERT_RESERVE - 1)
    connection.send_data(b"last")
    with pytest.raises(SequenceExhausted, match="open another session"):
        connection.send_data(b"one too many")
    connection.receive_data(peer.send(DATA, b"answer"))
    assert events(connection) == [DataReceived(b"answer")]
    connection.close()
    assert peer.open(connection.data_to_send()) == [(DATA, b"last"), (ALERT, CLOSE_NOTIFY)]


def test_a_used_up_key_of_tls12_is_not_overdone_by_alerts() -> None:
    connection, peer = session(GCM_12, client_sequence=limit(GCM_12) - 1)
    hello_request = encode_message(HelloRequest())
    connection.receive_data(peer.send(HANDSHAKE, hello_request) + peer.send(HANDSHAKE, hello_request))
    connection.close()
    assert len(peer.open(connection.data_to_send())) == 1
    with pytest.raises(ConnectionClosed):
        connection.send_data(b"x")


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
