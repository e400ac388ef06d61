"""The driver's commands, octet by octet as OpenSC 0.23 and yubico-piv-tool 2.2 send them (Debian 12).

They were recorded beside the software element. The tools leave Le out behind data, as a host of T=0 does.
"""

from __future__ import annotations

import pytest

from tests.fakes.card import ScriptedCard
from vmtoken.cards import piv_commands as commands
from vmtoken.cards.piv_codes import Algorithm, DataObject, Reference, Slot
from vmtoken.cards.piv_management import authenticate, candidates
from vmtoken.cards.piv_objects import encode_certificate
from vmtoken.errors import PinRejected
from vmtoken.iso7816 import commands as iso7816
from vmtoken.iso7816.channel import CardChannel, CardMisbehaved
from vmtoken.iso7816.status import StatusWordError
from vmtoken.secret import SecretBytes

CERTIFICATE = bytes.fromhex(
    "3082016e30820113a003020102021427a7b6127aeb7cc9096102f30aab9cf7ab5bf20e300a06082a8648ce3d04030230"
    "0c310a300806035504030c0161301e170d3236313132363035353333395a170d3236313232363035353333395a300c31"
    "0a300806035504030c01613059301306072a8648ce3d020106082a8648ce3d03010703420004e7a4113d65a42632b367"
    "f0c46c6ede5861496fe22447d1c5fb245a4cfc391f2d6bf05fa2d60293984ff4306de031cfd3e3003210b5f5b6d850a4"
    "80d1211844dfa3533051301d0603551d0e04160414e764527571c807d0b88bc9b74fd68d0545879bf0301f0603551d23"
    "041830168014e764527571c807d0b88bc9b74fd68d0545879bf0300f0603551d130101ff040530030101ff300a06082a"
    "8648ce3d0403020349003046022100b18ddf34bc2a5248505c3eaeaad2fe01f7fd54cec7556324ebb2304b06418d1302"
    "2100b9ab2f1e915248eac1aef28103f619ab3a1061d0cf89ef32dae5a8a009177e65"
)
"""`openssl req -x509`; what `yubico-piv-tool -a import-certificate -s 83` stored."""

FACTORY_KEY = SecretBytes(b"010203040506070801020304050607080102030405060708")
WITNESS, SHOWN = "132AB60A7E96F62D", "222DF487A5C71624"
CHALLENGE, RESPONSE = "E88974B63AA06488", "E862CC9A64683E99"
"""Of one mutual authentication under the key of the factory, Triple DES."""


def channel(card: ScriptedCard) -> CardChannel:
    return CardChannel(card, le_with_data=False)


def test_signature_is_asked_for_as_opensc_does() -> None:
    card = ScriptedCard(f"""
        00 87 11 9A 26 7C 24 82 00 81 20 {"00" * 32} > 7C 04 82 02 AB CD 90 00
    """)
    assert (
        commands.signature(channel(card), Algorithm.ECC_P256, Slot.AUTHENTICATION, bytes(32)) == b"\xab\xcd"
    )
    card.close()


def test_key_pair_is_asked_for_as_yubico_does() -> None:
    point = (
        "04 630DCAE375CD3993D4D0BEBA7CA4ECD4253E11544D885EF2F529B4C8B80FB24A"
        "7347A25498B2028C753F35EC125FA8AB403245E3AA825067CE97CCB2E9C27F7D"
    )
    card = ScriptedCard(f"00 47 00 83 05 AC 03 80 01 11 > 7F 49 43 86 41 {point} 90 00")
    info = commands.generate_asymmetric_key_pair(channel(card), Slot.RETIRED_2, Algorithm.ECC_P256)
    assert info.endswith(bytes.fromhex(point))
    card.close()


def test_certificate_is_stored_as_yubico_does() -> None:
    stored = bytes.fromhex("5C035FC10E 5382017B 70820172") + CERTIFICATE + bytes.fromhex("710100 FE00")
    card = ScriptedCard(f"""
        10 DB 3F FF FF {stored[:255].hex()} > 90 00
        00 DB 3F FF 85 {stored[255:].hex()} > 90 00
    """)
    commands.put_data(channel(card), Slot.RETIRED_2.certificate_tag, encode_certificate(CERTIFICATE))
    card.close()


def test_pins_are_changed_and_unblocked_as_yubico_does() -> None:
    card = ScriptedCard("""
        00 24 00 80 10 31 32 33 34 35 36 FF FF 32 33 34 35 36 37 FF FF > 90 00
        00 2C 00 80 10 31 32 33 34 35 36 37 38 31 32 33 34 35 36 FF FF > 90 00
    """)
    pin, other, puk = (SecretBytes(each) for each in (b"123456", b"234567", b"12345678"))
    iso7816.change_reference_data(channel(card), Reference.APPLICATION_PIN, pin, other)
    iso7816.reset_retry_counter(channel(card), Reference.APPLICATION_PIN, puk, pin)
    card.close()


def test_data_is_asked_for_as_yubico_does() -> None:
    card = ScriptedCard("00 CB 3F FF 05 5C 03 5F C1 02 > 53 02 30 00 90 00")
    assert commands.data(channel(card), DataObject.CARD_HOLDER_UNIQUE_IDENTIFIER) == b"\x30\x00"
    card.close()


def test_management_key_is_shown_as_yubico_does() -> None:
    card = ScriptedCard(f"""
        00 87 03 9B 04 7C 02 80 00 > 7C 0A 80 08 {WITNESS} 90 00
        00 87 03 9B 16 7C 14 80 08 {SHOWN} 81 08 {CHALLENGE} > 7C 0A 82 08 {RESPONSE} 90 00
    """)
    authenticate(channel(card), candidates(FACTORY_KEY), lambda length: bytes.fromhex(CHALLENGE))
    card.close()


@pytest.mark.parametrize("answer", ["", "7C 00", "7C 0A 82 08 E862CC9A64683E98", "7C 02 82 00"])
def test_card_must_prove_that_it_has_the_management_key(answer: str) -> None:
    card = ScriptedCard(f"""
        00 87 03 9B 04 7C 02 80 00 > 7C 0A 80 08 {WITNESS} 90 00
        00 87 03 9B 16 7C 14 80 08 {SHOWN} 81 08 {CHALLENGE} > {answer} 90 00
    """)
    with pytest.raises(CardMisbehaved, match="management key"):
        authenticate(channel(card), candidates(FACTORY_KEY), lambda length: bytes.fromhex(CHALLENGE))


@pytest.mark.parametrize(("status", "left"), [("69 82", None), ("63 00", 0), ("63 C7", 7), ("69 83", 0)])
def test_refused_management_key_says_what_the_card_tells(status: str, left: int | None) -> None:
    card = ScriptedCard(f"""
        00 87 03 9B 04 7C 02 80 00 > 7C 0A 80 08 {WITNESS} 90 00
        00 87 03 9B 16 7C 14 80 08 {SHOWN} 81 08 {CHALLENGE} > {status}
    """)
    with pytest.raises(PinRejected) as caught:
        authenticate(channel(card), candidates(FACTORY_KEY), lambda length: bytes.fromhex(CHALLENGE))
    assert caught.value.retries_left == left


def test_key_of_24_octets_is_aes_192_where_the_card_says_so() -> None:
    card = ScriptedCard("""
        00 87 03 9B 04 7C 02 80 00 > 6A 86
        00 87 0A 9B 04 7C 02 80 00 > 69 82
    """)
    with pytest.raises(StatusWordError, match="6982"):
        authenticate(channel(card), candidates(FACTORY_KEY), lambda length: bytes(length))
    card.close()
