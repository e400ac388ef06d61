from __future__ import annotations

import itertools

import pytest

from tests.fakes.card import ScriptedCard
from vmtoken.iso7816.apdu import CommandApdu
from vmtoken.iso7816.channel import ApduLimits, CardChannel, CardMisbehaved, Chaining
from vmtoken.iso7816.status import StatusWord, StatusWordError


def test_answer_longer_than_one_apdu_is_fetched_whole() -> None:
    card = ScriptedCard("""
        00 CA 00 00 00   > AA BB 61 02
        00 C0 00 00 02   > CC DD 90 00
    """)
    assert CardChannel(card).send(CommandApdu(0x00, 0xCA, le=256)) == bytes.fromhex("AABBCCDD")
    card.close()


def test_9f_is_fetched_with_the_fetch_command() -> None:
    card = ScriptedCard("""
        A0 80 00 00 01 FF 00 > 9F 03
        A0 12 00 00 03       > 01 02 03 90 00
    """)
    assert CardChannel(card).send(CommandApdu(0xA0, 0x80, data=b"\xff", le=256)) == b"\x01\x02\x03"
    card.close()


def test_wrong_le_is_corrected_once() -> None:
    card = ScriptedCard("""
        A0 18 00 00 00 > 6C 04
        A0 18 00 00 04 > 61 62 63 64 90 00
    """)
    assert CardChannel(card).send(CommandApdu(0xA0, 0x18, le=256)) == b"abcd"
    card.close()


def test_wrong_le_of_get_response_is_corrected() -> None:
    card = ScriptedCard("""
        A0 18 00 00 00 > 61 00
        A0 C0 00 00 00 > 6C 02
        A0 C0 00 00 02 > 61 62 90 00
    """)
    assert CardChannel(card).send(CommandApdu(0xA0, 0x18, le=256)) == b"ab"
    card.close()


def test_card_that_corrects_le_for_ever_is_not_believed() -> None:
    card = ScriptedCard("A0 18 00 00 00 > 6C 04\nA0 18 00 00 04 > 6C 05")
    with pytest.raises(StatusWordError, match="6C05"):
        CardChannel(card).send(CommandApdu(0xA0, 0x18, le=256))


def test_long_data_is_chained_in_cla() -> None:
    card = ScriptedCard("""
        10 DB 3F FF 02 01 02 > 90 00
        10 DB 3F FF 02 03 04 > 90 00
        00 DB 3F FF 01 05    > 90 00
    """)
    channel = CardChannel(card, ApduLimits(command_data=2))
    channel.send(CommandApdu(0x00, 0xDB, 0x3F, 0xFF, bytes.fromhex("0102030405")))
    card.close()


def test_long_data_is_chained_in_p1_and_le_is_in_the_last_part() -> None:
    card = ScriptedCard("""
        A0 80 01 00 02 01 02    > 90 00
        A0 80 00 00 02 03 04 00 > AA 90 00
    """)
    channel = CardChannel(card, ApduLimits(command_data=2), chaining=Chaining.P1)
    assert channel.send(CommandApdu(0xA0, 0x80, data=bytes.fromhex("01020304"), le=256)) == b"\xaa"
    card.close()


def test_refused_part_ends_the_command() -> None:
    card = ScriptedCard("10 DB 00 00 02 01 02 > 6A 84")
    channel = CardChannel(card, ApduLimits(command_data=2))
    with pytest.raises(StatusWordError) as caught:
        channel.send(CommandApdu(0x00, 0xDB, data=b"\x01\x02\x03"))
    assert caught.value.status == StatusWord.NOT_ENOUGH_MEMORY


def test_over_t0_no_le_follows_data() -> None:
    card = ScriptedCard("A0 80 00 00 01 07 > 61 01\nA0 C0 00 00 01 > 08 90 00")
    channel = CardChannel(card, le_with_data=False)
    assert channel.send(CommandApdu(0xA0, 0x80, data=b"\x07", le=256)) == b"\x08"
    card.close()


def test_extended_apdus_are_used_when_the_limits_say_so() -> None:
    card = ScriptedCard("A0 80 00 00 00 00 01 07 00 00 > 08 90 00")
    channel = CardChannel(card, ApduLimits(65535, 65536))
    assert channel.send(CommandApdu(0xA0, 0x80, data=b"\x07", le=65536)) == b"\x08"
    card.close()


def test_status_words_other_than_9000_are_errors() -> None:
    with pytest.raises(StatusWordError) as caught:
        CardChannel(ScriptedCard("A0 86 00 00 > 69 85")).send(CommandApdu(0xA0, 0x86))
    assert caught.value.status == StatusWord.CONDITIONS_NOT_SATISFIED
    assert caught.value.ins == 0x86


def test_what_passed_is_counted() -> None:
    channel = CardChannel(ScriptedCard("A0 18 00 00 00 > 61 01\nA0 C0 00 00 01 > 61 90 00"))
    channel.send(CommandApdu(0xA0, 0x18, le=256))
    assert (channel.apdus, channel.octets) == (2, 5 + 2 + 5 + 3)


@pytest.mark.parametrize("part", [b"\x61\x00", b"\x01\x61\x01", bytes(256) + b"\x61\x00", b"\x9f\x00"])
def test_answer_without_end_is_cut_off(part: bytes) -> None:
    endless = _EndlessCard(part)
    with pytest.raises(CardMisbehaved, match="no end"):
        CardChannel(endless).send(CommandApdu(0xA0, 0x18, le=256))
    assert endless.commands <= 2000


@pytest.mark.parametrize("answer", [b"", b"\x90"])
def test_answer_without_status_word_is_the_card_misbehaving(answer: bytes) -> None:
    with pytest.raises(CardMisbehaved):
        CardChannel(_EndlessCard(answer)).send(CommandApdu(0xA0, 0x18))


class _EndlessCard:
    """Gives the same answer to everything."""

    def __init__(self, answer: bytes) -> None:
        self._answers = itertools.repeat(answer)
        self.commands = 0

    def transmit(self, command: bytes) -> bytes:
        self.commands += 1
        return next(self._answers)

    def reset(self) -> None: ...

    def close(self) -> None: ...
