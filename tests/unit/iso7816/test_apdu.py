from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtoken.codec import DecodeError
from vmtoken.iso7816.apdu import CommandApdu, ResponseApdu
from vmtoken.iso7816.status import StatusWord


@dataclass(frozen=True)
class ApduVector:
    """The cases of ISO/IEC 7816-3 section 12.1.3, table 13."""

    name: str
    command: CommandApdu
    encoded: str


VECTORS = [
    ApduVector("1", CommandApdu(0x00, 0xA4, 0x04, 0x00), "00A40400"),
    ApduVector("2S", CommandApdu(0xA0, 0xC0, le=0x50), "A0C0000050"),
    ApduVector("2S, Le 256", CommandApdu(0xA0, 0x12, le=256), "A012000000"),
    ApduVector("3S", CommandApdu(0xA0, 0x16, 0x00, 0x80, b"abcd"), "A01600800461626364"),
    ApduVector("4S", CommandApdu(0x00, 0xA4, 0x04, 0x00, b"\x11\x22", 256), "00A4040002112200"),
    ApduVector("2E", CommandApdu(0x00, 0xB0, le=65536), "00B00000000000"),
    ApduVector("2E, Le 257", CommandApdu(0x00, 0xB0, le=257), "00B00000000101"),
    ApduVector("3E", CommandApdu(0xA0, 0x80, data=bytes(256)), "A0800000000100" + "00" * 256),
    ApduVector(
        "4E", CommandApdu(0xA0, 0x80, data=bytes(256), le=65536), "A0800000000100" + "00" * 256 + "0000"
    ),
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_command_is_encoded_as_in_the_standard(vector: ApduVector) -> None:
    assert vector.command.encode() == bytes.fromhex(vector.encoded)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_command_is_decoded_as_in_the_standard(vector: ApduVector) -> None:
    assert CommandApdu.decode(bytes.fromhex(vector.encoded)) == vector.command


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.name)
def test_no_other_length_passes_for_the_command(vector: ApduVector) -> None:
    encoded = bytes.fromhex(vector.encoded)
    for size in range(len(encoded)):
        _decodes_differently_or_not(encoded[:size], vector.command)
    _decodes_differently_or_not(encoded + b"\x01", vector.command)


@pytest.mark.parametrize(
    "octets", ["", "00A404", "00A404000211223344", "00A404000211", "00A40400000000AA", "00A40400000002112233"]
)
def test_lengths_that_do_not_fit_are_refused(octets: str) -> None:
    with pytest.raises(DecodeError):
        CommandApdu.decode(bytes.fromhex(octets))


@given(
    st.builds(
        CommandApdu,
        *[st.integers(0, 255)] * 4,
        data=st.binary(max_size=600),
        le=st.none() | st.integers(1, 65536),
    ),
    st.booleans(),
)
def test_every_command_survives_the_way_there_and_back(command: CommandApdu, extended: bool) -> None:
    assert CommandApdu.decode(command.encode(extended=extended)) == command


@given(st.binary(max_size=300))
def test_any_octets_parse_or_raise_the_decode_error(octets: bytes) -> None:
    try:
        command = CommandApdu.decode(octets)
    except DecodeError:
        return
    assert len(command.data) <= len(octets)


def test_too_much_for_one_apdu_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="too much for one APDU"):
        CommandApdu(0, 0, data=bytes(65536)).encode()


def test_response_is_data_and_status() -> None:
    response = ResponseApdu.decode(bytes.fromhex("AABB6102"))
    assert response == ResponseApdu(b"\xaa\xbb", StatusWord(0x6102))
    assert response.encode() == bytes.fromhex("AABB6102")


@pytest.mark.parametrize("octets", [b"", b"\x90"])
def test_response_without_status_word_is_refused(octets: bytes) -> None:
    with pytest.raises(DecodeError):
        ResponseApdu.decode(octets)


def _decodes_differently_or_not(octets: bytes, command: CommandApdu) -> None:
    with contextlib.suppress(DecodeError):
        assert CommandApdu.decode(octets) != command
