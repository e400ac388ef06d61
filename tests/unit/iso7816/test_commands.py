from __future__ import annotations

import pytest

from tests.fakes.card import ScriptedCard
from vmtoken.errors import InvalidRequest, PinBlocked, PinRejected
from vmtoken.iso7816 import commands
from vmtoken.iso7816.channel import CardChannel
from vmtoken.iso7816.status import StatusWordError
from vmtoken.secret import SecretBytes

PIN = SecretBytes(b"0000")
NEW_PIN = SecretBytes(b"12345678")


def channel(script: str) -> CardChannel:
    return CardChannel(ScriptedCard(script))


def test_select_asks_for_the_fci() -> None:
    card = channel("00 A4 04 00 07 11 22 33 44 55 66 01 00 > 6F 00 90 00")
    assert commands.select(card, bytes.fromhex("11223344556601")) == b"\x6f\x00"
    card.close()


def test_pin_is_padded_with_ff() -> None:
    card = channel("A0 20 00 00 08 30 30 30 30 FF FF FF FF > 90 00")
    commands.verify(card, 0x00, PIN, cla=0xA0)
    card.close()


@pytest.mark.parametrize(("status", "retries"), [("63 C2", 2), ("63 02", 2)])
def test_wrong_pin_says_how_many_tries_are_left(status: str, retries: int) -> None:
    with pytest.raises(PinRejected) as caught:
        commands.verify(channel(f"00 20 00 00 08 30 30 30 30 FF FF FF FF > {status}"), 0x00, PIN)
    assert caught.value.retries_left == retries


@pytest.mark.parametrize("status", ["69 83", "63 C0", "63 00"])
def test_pin_without_tries_is_blocked(status: str) -> None:
    with pytest.raises(PinBlocked):
        commands.verify(channel(f"00 20 00 00 08 30 30 30 30 FF FF FF FF > {status}"), 0x00, PIN)


def test_other_refusals_of_a_pin_say_nothing_of_tries() -> None:
    with pytest.raises(StatusWordError, match="6D00"):
        commands.verify(channel("00 20 00 00 08 30 30 30 30 FF FF FF FF > 6D 00"), 0x00, PIN)


@pytest.mark.parametrize(("status", "retries"), [("90 00", None), ("63 03", 3), ("63 C1", 1), ("69 83", 0)])
def test_tries_are_asked_for_without_spending_one(status: str, retries: int | None) -> None:
    card = channel(f"A0 20 00 01 > {status}")
    assert commands.retries_left(card, 0x01, cla=0xA0) == retries
    card.close()


def test_unknown_status_is_not_taken_for_zero_tries() -> None:
    with pytest.raises(StatusWordError, match="6E00"):
        commands.retries_left(channel("00 20 00 00 > 6E 00"), 0x00)


def test_change_and_unblock() -> None:
    card = channel("""
        A0 24 00 00 10 30 30 30 30 FF FF FF FF 31 32 33 34 35 36 37 38 > 90 00
        A0 2C 00 00 10 30 30 30 30 FF FF FF FF 31 32 33 34 35 36 37 38 > 63 05
    """)
    commands.change_reference_data(card, 0x00, PIN, NEW_PIN, cla=0xA0)
    with pytest.raises(PinRejected) as caught:
        commands.reset_retry_counter(card, 0x00, PIN, NEW_PIN, cla=0xA0)
    assert caught.value.retries_left == 5
    card.close()


@pytest.mark.parametrize("pin", [b"", b"123456789"])
def test_pin_of_impossible_length_never_reaches_the_card(pin: bytes) -> None:
    with pytest.raises(InvalidRequest, match="1 to 8 characters"):
        commands.verify(channel(""), 0x00, SecretBytes(pin))
