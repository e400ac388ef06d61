from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtoken.codec import DecodeError
from vmtoken.iso7816.atr import AnswerToReset


# The long ones are from the ATR tables of OpenSC (src/libopensc/card-*.c).
@pytest.mark.parametrize(
    ("atr", "protocols", "historical", "extended"),
    [
        ("3B 00", (0,), "", False),
        ("3B 80 80 01 01", (0, 1), "", False),
        ("3B F8 13 00 00 81 31 FE 15 59 75 62 69 6B 65 79 34 D4", (1,), "59 75 62 69 6B 65 79 34", False),
        ("3B FD 13 00 00 81 31 FE 15 80 73 C0 21 C0 57 59 75 62 69 4B 65 79 40", (1,), None, True),
        ("3B DA 18 FF 81 B1 FE 75 1F 03 00 31 C5 73 C0 01 40 00 90 00 0C", (1,), None, True),
        ("3B DB 96 00 80 B1 FE 45 1F 83 00 12 23 3F 53 65 49 44 0F 90 00 F1", (0, 1), None, False),
    ],
    ids=["shortest", "vpcd", "YubiKey 4", "YubiKey 5", "OpenPGP card", "EstEID 2018"],
)
def test_atr_says_protocols_and_extended_apdus(
    atr: str, protocols: tuple[int, ...], historical: str | None, extended: bool
) -> None:
    decoded = AnswerToReset.decode(bytes.fromhex(atr))
    assert decoded.protocols == protocols
    assert decoded.extended_apdus is extended
    if historical is not None:
        assert decoded.historical == bytes.fromhex(historical)


@pytest.mark.parametrize("t0", [False, True])
@pytest.mark.parametrize("extended", [False, True])
def test_own_atr_says_what_the_card_does(t0: bool, extended: bool) -> None:
    atr = AnswerToReset.of_card(t0=t0, extended=extended)
    decoded = AnswerToReset.decode(atr.encode())
    assert decoded == atr
    assert (1 in decoded.protocols) is not t0
    assert decoded.extended_apdus is extended


def test_two_protocols_are_announced_as_in_the_standard() -> None:
    assert AnswerToReset((0, 1)).encode() == bytes.fromhex("3B 80 80 01 01")
    assert AnswerToReset((0,)).encode() == bytes.fromhex("3B 00")


@given(st.binary(max_size=40))
def test_any_octets_are_an_atr_or_a_decode_error(octets: bytes) -> None:
    try:
        decoded = AnswerToReset.decode(octets)
    except DecodeError:
        return
    assert decoded.protocols
    assert decoded.extended_apdus in {True, False}
