from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.record_socket import MAX_RECORDS, NotTls, RecordSocket, whole_records

RECORDS = [b"\x16\x03\x01\x00\x03abc", b"\x14\x03\x03\x00\x01\x01", b"\x17\x03\x03\x00\x00"]
STREAM = b"".join(RECORDS)


def test_whole_records_are_found_and_no_more() -> None:
    ends = [8, 14, 19]
    for length in range(len(STREAM) + 1):
        found = whole_records(bytearray(STREAM[:length]))
        assert found == max([end for end in ends if end <= length], default=0)


@given(st.binary(max_size=40))
def test_tail_of_any_octets_is_left_or_refused(tail: bytes) -> None:
    try:
        assert whole_records(bytearray(STREAM + tail)) >= len(STREAM)
    except NotTls:
        assert tail[0] not in range(20, 25) or tail[1:2] != b"\x03" or len(tail) >= 5


@given(st.binary(max_size=200))
def test_any_octets_are_records_or_refused(octets: bytes) -> None:
    with contextlib.suppress(NotTls):
        assert 0 <= whole_records(bytearray(octets)) <= len(octets)


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak TLS; it sent 'HTTP/1.1 400 Bad Request'"),
        (b"220 mail.example's\r\n", r"it sent '220 mail.example.s..'"),
        (b"\x80\x2e\x01\x00\x02", r"it sent '.....'"),
        (b"\x16\x03\x03\x48\x01", "a record of 18433 octets"),
    ],
)
def test_what_is_no_record_is_refused_in_words(octets: bytes, words: str) -> None:
    with pytest.raises(NotTls, match=words):
        whole_records(bytearray(octets))


def test_no_more_than_the_limit_is_taken_at_once() -> None:
    record = b"\x17\x03\x03\x40\x00" + bytes(16_384)
    assert whole_records(bytearray(record * 5)) == 3 * len(record) <= MAX_RECORDS


async def test_records_come_whole_however_they_are_cut() -> None:
    async with _pair() as (theirs, ours):
        received = b""
        for octet in STREAM:
            theirs.send(bytes([octet]))
            await asyncio.sleep(0)
        while len(received) < len(STREAM):
            piece = await ours.read_records()
            assert whole_records(bytearray(piece)) == len(piece)
            received += piece
        assert received == STREAM


async def test_end_in_the_middle_of_a_record_is_an_end() -> None:
    async with _pair() as (theirs, ours):
        theirs.send(STREAM + b"\x16\x03")
        theirs.close()
        assert await ours.read_records() == STREAM
        with pytest.raises(EOFError):
            await ours.read_records()


async def test_what_was_held_goes_to_the_receiver_and_the_end_is_told_once() -> None:
    async with _pair() as (theirs, ours):
        theirs.send(RECORDS[0] + b"\x16")
        assert await ours.read_records() == RECORDS[0]
        got, ends = bytearray(), []
        ours.hand_over(got.extend, lambda: ends.append(None))
        theirs.send(b"any octets")
        theirs.close()
        async with asyncio.timeout(5):
            while not ends:  # noqa: ASYNC110  # the callback is what is tested
                await asyncio.sleep(0)
        assert got == b"\x16any octets"
        ours.abort()
        await ours.closed
        assert len(ends) == 1


async def test_alert_that_came_before_a_reset_is_still_read() -> None:
    """The kernel holds the alert while our own writing meets the reset."""
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.get_running_loop()
    _, ours = await loop.create_connection(RecordSocket, *listener.getsockname())
    theirs, _ = listener.accept()
    listener.close()
    got = bytearray()
    ours.hand_over(got.extend, lambda: None)
    ours.send(b"unread by the server")
    ours.pause()
    theirs.send(b"alert")
    theirs.close()  # with octets unread: the kernel resets
    for _ in range(100):
        ours.send(b"more")
        await asyncio.sleep(0)
    await ours.closed
    assert got == b"alert"


@contextlib.asynccontextmanager
async def _pair():  # type: ignore[no-untyped-def]
    theirs, our_end = socket.socketpair()
    our_end.setblocking(False)
    _, ours = await asyncio.get_running_loop().create_unix_connection(RecordSocket, sock=our_end)
    try:
        yield theirs, ours
    finally:
        theirs.close()
        ours.abort()
        await ours.closed
