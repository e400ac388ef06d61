from __future__ import annotations

import pytest

from vmtoken.codec import DecodeError, Reader, Writer

OCTETS = bytes.fromhex("01 0203 0004 0a0b0c0d 02 ffff".replace(" ", ""))


def read(reader: Reader) -> tuple[int, int, bytes, tuple[int, ...]]:
    return reader.uint(1), reader.uint(2), reader.opaque(2), reader.uints(1, 2)


def test_fields_are_big_endian() -> None:
    with Reader(OCTETS) as reader:
        assert read(reader) == (1, 0x0203, b"\x0a\x0b\x0c\x0d", (0xFFFF,))


def test_writer_writes_what_reader_reads() -> None:
    writer = Writer()
    writer.uint(1, 1)
    writer.uint(0x0203, 2)
    with writer.block(2):
        writer.raw(b"\x0a\x0b")
        writer.raw(b"\x0c\x0d")
    writer.uints((0xFFFF,), 1, 2)
    assert writer.getvalue() == OCTETS
    assert len(writer) == len(OCTETS)


@pytest.mark.parametrize("length", range(len(OCTETS)))
def test_truncated(length: int) -> None:
    with pytest.raises(DecodeError, match="missing"):
        read(Reader(OCTETS[:length]))


def test_tail() -> None:
    with pytest.raises(DecodeError, match="1 octets too many at offset 12"), Reader(OCTETS + b"x") as reader:
        read(reader)


def test_leftovers_in_a_block() -> None:
    with pytest.raises(DecodeError, match="too many"), Reader(b"\x02ab").block(1) as block:
        block.uint(1)


def test_a_block_does_not_read_what_follows_it() -> None:
    reader = Reader(b"\x01ab")
    with reader.block(1) as block:
        assert block.rest() == b"a"
        with pytest.raises(DecodeError, match="missing"):
            block.uint(1)
    assert reader.rest() == b"b"


def test_an_error_inside_a_block_is_not_hidden_by_its_leftovers() -> None:
    with pytest.raises(KeyError), Reader(b"\x02ab").block(1):
        raise KeyError


@pytest.mark.parametrize(("minimum", "maximum"), [(3, None), (0, 1)])
def test_length_of_a_block_out_of_range(minimum: int, maximum: int | None) -> None:
    for take in (Reader(b"\x02ab").opaque, Reader(b"\x02ab").block):
        with pytest.raises(DecodeError, match="a block of 2 octets"):
            take(1, minimum, maximum)


@pytest.mark.parametrize("block", [b"\x00", b"\x03abc"])
def test_uints_are_at_least_one_and_whole(block: bytes) -> None:
    with pytest.raises(DecodeError):
        Reader(block).uints(1, 2)


def test_blocks_in_a_block() -> None:
    assert Reader(b"\x04\x01a\x01b").opaques(1, 1) == (b"a", b"b")
    for wrong in (b"\x00", b"\x01\x00", b"\x03\x01a\x00", b"\x03\x01a\x01"):
        with pytest.raises(DecodeError):
            Reader(wrong).opaques(1, 1)
    assert Reader(b"\x01\x00").opaques(1, 1, minimum=0) == (b"",)


def test_nested_blocks() -> None:
    writer = Writer()
    with writer.block(2), writer.block(1):
        writer.raw(b"ab")
    assert writer.getvalue() == b"\x00\x03\x02ab"


def test_values_that_do_not_fit() -> None:
    writer = Writer()
    with pytest.raises(ValueError, match="256 does not fit"):
        writer.uint(256, 1)
    with pytest.raises(ValueError, match="does not fit"):
        writer.opaque(bytes(256), 1)
    with pytest.raises(ValueError, match="does not fit"), writer.block(1):
        writer.raw(bytes(256))


def test_a_list_of_integers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit into 1"):
        Writer().uints((1, 256), 1, 1)


def test_position_is_in_the_outermost_data() -> None:
    reader = Reader(b"\x00\x02ab")
    block = reader.block(2)
    block.uint(1)
    assert (block.position, block.remaining) == (3, 1)
