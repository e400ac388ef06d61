from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtoken.codec import DecodeError
from vmtoken.eap.eap_tls import EapTlsMessage
from vmtoken.eap.fragments import Fragmenter, Reassembler
from vmtoken.eap.packet import EapCode, EapPacket, EapType


def fragments(data: bytes, packet_length: int) -> list[EapTlsMessage]:
    fragmenter = Fragmenter(data, packet_length)
    pieces = [fragmenter.next_fragment()]
    while not fragmenter.is_done:
        pieces.append(fragmenter.next_fragment())
    return pieces


def test_short_message_is_one_piece_with_its_length() -> None:
    assert fragments(b"abc", 200) == [EapTlsMessage(b"abc", tls_message_length=3)]


def test_first_piece_says_the_length_and_all_but_the_last_say_more() -> None:
    first, middle, last = fragments(bytes(300), 120)
    assert (first.tls_message_length, first.more_fragments, len(first.data)) == (300, True, 110)
    assert (middle.tls_message_length, middle.more_fragments, len(middle.data)) == (None, True, 114)
    assert (last.tls_message_length, last.more_fragments, len(last.data)) == (None, False, 76)


@given(st.binary(min_size=1, max_size=2000), st.integers(64, 700))
def test_pieces_fit_and_make_the_message_again(data: bytes, packet_length: int) -> None:
    reassembler = Reassembler(limit=2000)
    pieces = fragments(data, packet_length)
    for piece in pieces:
        packet = EapPacket(EapCode.REQUEST, 0, EapType.EAP_TLS, piece.encode()).encode()
        assert len(packet) <= packet_length
    assert [reassembler.add(piece) for piece in pieces] == [None] * (len(pieces) - 1) + [data]


def test_length_may_be_repeated_but_not_changed() -> None:
    reassembler = Reassembler(limit=100)
    assert reassembler.add(EapTlsMessage(b"ab", more_fragments=True, tls_message_length=4)) is None
    assert reassembler.add(EapTlsMessage(b"cd", tls_message_length=4)) == b"abcd"
    reassembler.add(EapTlsMessage(b"ab", more_fragments=True, tls_message_length=4))
    with pytest.raises(DecodeError, match="different lengths"):
        reassembler.add(EapTlsMessage(b"cd", tls_message_length=5))


@pytest.mark.parametrize(
    "bad",
    [
        [EapTlsMessage(bytes(101))],
        [EapTlsMessage(b"a", more_fragments=True)],
        [EapTlsMessage(b"a", more_fragments=True, tls_message_length=101)],
        [EapTlsMessage(b"ab", tls_message_length=1)],
        [EapTlsMessage(b"ab", tls_message_length=3)],
        [EapTlsMessage(b"", more_fragments=True, tls_message_length=3)],
        [EapTlsMessage(b"ab", more_fragments=True, tls_message_length=2)],
        [EapTlsMessage(b"ab", more_fragments=True, tls_message_length=3), EapTlsMessage(b"cd")],
        [
            EapTlsMessage(b"ab", more_fragments=True, tls_message_length=9),
            EapTlsMessage(b"", more_fragments=True),
        ],
    ],
    ids=lambda bad: str(len(bad)),
)
def test_fragments_that_contradict_themselves_are_refused_and_forgotten(bad: list[EapTlsMessage]) -> None:
    reassembler = Reassembler(limit=100)
    for message in bad[:-1]:
        reassembler.add(message)
    with pytest.raises(DecodeError):
        reassembler.add(bad[-1])
    assert reassembler.add(EapTlsMessage(b"fresh")) == b"fresh"


def test_packet_too_small_to_get_anywhere_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 64"):
        Fragmenter(b"abc", 63)
