from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtoken.codec import DecodeError
from vmtoken.eap.eap_tls import ACKNOWLEDGEMENT, EapTlsMessage
from vmtoken.eap.packet import EapCode, EapPacket, EapType

PACKETS = [
    ("01 A4 00 05 01", EapPacket(EapCode.REQUEST, 0xA4, EapType.IDENTITY)),
    ("02 A5 00 09 01 61 62 63 64", EapPacket(EapCode.RESPONSE, 0xA5, EapType.IDENTITY, b"abcd")),
    ("03 02 00 04", EapPacket(EapCode.SUCCESS, 2)),
    ("04 FF 00 04", EapPacket(EapCode.FAILURE, 255)),
    ("01 01 00 06 FE 00", EapPacket(EapCode.REQUEST, 1, 254, b"\x00")),
]


@pytest.mark.parametrize(("encoded", "packet"), PACKETS)
def test_packet_is_encoded_and_decoded(encoded: str, packet: EapPacket) -> None:
    assert packet.encode() == bytes.fromhex(encoded)
    assert EapPacket.decode(bytes.fromhex(encoded)) == packet


@pytest.mark.parametrize(("encoded", "packet"), PACKETS)
def test_octets_behind_the_length_are_padding(encoded: str, packet: EapPacket) -> None:
    assert EapPacket.decode_with_tail(bytes.fromhex(encoded) + b"tail") == (packet, b"tail")


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "01 00 00",
        "01 00 00 06 0D",
        "01 00 00 03 00",
        "05 00 00 05 01",
        "00 00 00 04",
        "01 00 00 04",
        "03 00 00 05 01",
    ],
)
def test_what_is_no_packet_is_refused(octets: str) -> None:
    with pytest.raises(DecodeError):
        EapPacket.decode(bytes.fromhex(octets))


@given(st.binary(max_size=60))
def test_any_octets_parse_or_raise_the_decode_error(octets: bytes) -> None:
    try:
        packet, tail = EapPacket.decode_with_tail(octets)
    except DecodeError:
        return
    assert packet.encode() + tail == octets


def test_packet_longer_than_its_length_field_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="65535"):
        EapPacket(EapCode.REQUEST, 0, EapType.EAP_TLS, bytes(65531)).encode()


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("20", EapTlsMessage(start=True)),
        ("00", ACKNOWLEDGEMENT),
        ("80 00 00 00 02 AA BB", EapTlsMessage(b"\xaa\xbb", tls_message_length=2)),
        ("C0 00 00 12 66 16", EapTlsMessage(b"\x16", more_fragments=True, tls_message_length=0x1266)),
        ("40 16", EapTlsMessage(b"\x16", more_fragments=True)),
    ],
)
def test_eap_tls_message_is_encoded_and_decoded(encoded: str, message: EapTlsMessage) -> None:
    assert message.encode() == bytes.fromhex(encoded)
    assert EapTlsMessage.decode(bytes.fromhex(encoded)) == message


def test_reserved_flags_are_ignored() -> None:
    assert EapTlsMessage.decode(b"\x1f\x01") == EapTlsMessage(b"\x01")


@pytest.mark.parametrize("octets", [b"", b"\x80\x00\x00\x00"])
def test_message_that_is_cut_off_is_refused(octets: bytes) -> None:
    with pytest.raises(DecodeError):
        EapTlsMessage.decode(octets)


def test_only_the_empty_message_is_an_acknowledgement() -> None:
    assert ACKNOWLEDGEMENT.is_acknowledgement
    assert not EapTlsMessage(start=True).is_acknowledgement
    assert not EapTlsMessage(b"\x00").is_acknowledgement
