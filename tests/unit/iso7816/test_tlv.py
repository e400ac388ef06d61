from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtoken.codec import DecodeError
from vmtoken.iso7816.tlv import BerTlv, decode_fields, encode_tlv

VECTORS = [
    ("84 02 AA BB", BerTlv(0x84, b"\xaa\xbb")),
    ("7F 21 00", BerTlv(0x7F21, b"")),
    ("5F 81 01 01 07", BerTlv(0x5F8101, b"\x07")),
    ("04 81 80" + "11" * 128, BerTlv(0x04, b"\x11" * 128)),
    ("A5 82 01 00" + "22" * 256, BerTlv(0xA5, b"\x22" * 256)),
]


@pytest.mark.parametrize(("encoded", "item"), VECTORS)
def test_object_is_encoded_and_decoded(encoded: str, item: BerTlv) -> None:
    assert item.encode() == bytes.fromhex(encoded)
    assert BerTlv.decode(bytes.fromhex(encoded)) == item


def test_longer_length_than_needed_is_read_as_ber_allows() -> None:
    assert BerTlv.decode(bytes.fromhex("84 82 00 01 AA")) == BerTlv(0x84, b"\xaa")


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "84",
        "84 02 AA",
        "84 80 AA 00 00",
        "84 85 00 00 00 00 01 AA",
        "9F",
        "9F 81",
        "9F 81 82 83 00",
        "84 00 84 01",
        "84 81",
    ],
)
def test_what_is_not_one_object_is_refused(octets: str) -> None:
    with pytest.raises(DecodeError):
        BerTlv.decode(bytes.fromhex(octets))


def test_fields_may_not_come_twice() -> None:
    assert decode_fields(bytes.fromhex("80 01 01 81 00")) == {0x80: b"\x01", 0x81: b""}
    with pytest.raises(DecodeError, match="twice"):
        decode_fields(bytes.fromhex("80 01 01 80 01 01"))


_TAGS = st.sampled_from([0x01, 0x6F, 0x80, 0xA5, 0x5F2D, 0x7F21, 0x9F8101])


@given(st.lists(st.tuples(_TAGS, st.binary(max_size=300))))
def test_objects_survive_the_way_there_and_back(items: list[tuple[int, bytes]]) -> None:
    encoded = b"".join(encode_tlv(tag, value) for tag, value in items)
    assert [(item.tag, item.value) for item in BerTlv.decode_all(encoded)] == items


@given(st.binary(max_size=80))
def test_any_octets_parse_or_raise_the_decode_error(octets: bytes) -> None:
    try:
        objects = BerTlv.decode_all(octets)
    except DecodeError:
        return
    assert sum(len(item.value) for item in objects) <= len(octets)
