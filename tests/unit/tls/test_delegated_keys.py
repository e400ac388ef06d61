"""Keys of a session that are replaced, and keys that are worn out."""

from __future__ import annotations

import pytest

from tests.support.delegated_peer import (
    ALERT,
    CLOSE_NOTIFY,
    DATA,
    GCM_12,
    GCM_13,
    HANDSHAKE,
    TICKET,
    UPDATE,
    UPDATE_REQUESTED,
    assert_ends,
    events,
    session,
)
from vmtoken.tls.codes import (
    CipherSuite,
)
from vmtoken.tls.delegated import ALERT_RESERVE, UPDATE_MARGIN
from vmtoken.tls.errors import (
    BadRecordMac,
    ConnectionClosed,
    IllegalParameter,
    LocalError,
    SequenceExhausted,
    UnexpectedMessage,
)
from vmtoken.tls.events import DataReceived
from vmtoken.tls.key_block import MAX_PLAINTEXT
from vmtoken.tls.messages import (
    HelloRequest,
    KeyUpdate,
    encode_message,
)
from vmtoken.tls.suites import suite_of

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
