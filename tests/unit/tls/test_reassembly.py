from __future__ import annotations

import pytest

from tests.support.tls_messages import MESSAGES
from vmtoken.tls.codes import HandshakeType
from vmtoken.tls.errors import IllegalParameter, UnexpectedMessage
from vmtoken.tls.messages import encode_message
from vmtoken.tls.reassembly import MAX_CERTIFICATE_MESSAGE, MAX_MESSAGE, HandshakeReassembler, max_body_length

ENCODED = [encode_message(message) for _, message in MESSAGES]
STREAM = b"".join(ENCODED)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100, len(STREAM)])
def test_messages_cut_anywhere(size: int) -> None:
    reassembler = HandshakeReassembler()
    messages = []
    for start in range(0, len(STREAM), size):
        reassembler.add(memoryview(STREAM)[start : start + size])
        while (message := reassembler.next_message()) is not None:
            messages.append(message)
    assert messages == ENCODED
    assert reassembler.is_empty


def test_a_tail_is_held() -> None:
    reassembler = HandshakeReassembler()
    reassembler.add(ENCODED[1] + b"\x0b")
    assert reassembler.next_message() == ENCODED[1]
    assert reassembler.next_message() is None
    assert not reassembler.is_empty


def test_an_empty_record_is_refused() -> None:
    with pytest.raises(UnexpectedMessage, match="empty handshake record"):
        HandshakeReassembler().add(b"")


@pytest.mark.parametrize(
    ("handshake_type", "limit"), [(11, MAX_CERTIFICATE_MESSAGE), (4, MAX_MESSAGE), (99, MAX_MESSAGE)]
)
def test_a_message_that_is_too_long_is_refused_by_its_header(handshake_type: int, limit: int) -> None:
    header = bytes((handshake_type,))
    reassembler = HandshakeReassembler()
    reassembler.add(header + limit.to_bytes(3, "big"))
    assert reassembler.next_message() is None
    reassembler = HandshakeReassembler()
    reassembler.add(header + (limit + 1).to_bytes(3, "big"))
    with pytest.raises(IllegalParameter, match=f"more than the {limit}"):
        reassembler.next_message()


def test_limits_let_what_the_format_can_hold_through() -> None:
    assert max_body_length(HandshakeType.CERTIFICATE) == MAX_CERTIFICATE_MESSAGE
    assert max_body_length(HandshakeType.NEW_SESSION_TICKET) == MAX_MESSAGE
    assert max_body_length(99) == MAX_MESSAGE
    assert MAX_MESSAGE > 65535 + 4 + 4 + 256 + 2
