"""The card's operating system: APDUs, parts, SELECT."""

from __future__ import annotations

from pathlib import Path

import pytest

from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import ElementOptions, SoftwareElement
from tests.support.cards import NAME, PINS, SEALING_KEY, Card, bare_element
from tests.support.pki import client_identity
from vmtoken.cards.codes import AID, Features, Instruction
from vmtoken.cards.profile import Fci, ProfileData
from vmtoken.tls.codes import ProtocolVersion

SELECT = bytes.fromhex("00 A4 04 00 10") + AID
VERIFY_USER = bytes.fromhex("A0 20 00 00 08 31 32 33 34 FF FF FF FF")
VERIFY_OPERATOR = bytes.fromhex("A0 20 00 01 08") + b"87654321"


def send(element: SoftwareElement, *commands: str) -> str:
    """The answer to the last of them."""
    answer = b""
    for command in commands:
        answer = element.transmit(bytes.fromhex(command))
    return answer.hex(" ").upper()


def selected(element: SoftwareElement, *commands: bytes) -> SoftwareElement:
    for command in (SELECT, *commands):
        assert element.transmit(command)[-2] in (0x90, 0x61)
    element.transmit(bytes.fromhex("A0 20 00 00"))  # whatever is left to fetch is dropped
    return element


@pytest.fixture
def element(tmp_path: Path) -> SoftwareElement:
    return bare_element(tmp_path)


def test_select_answers_what_the_card_can_do(element: SoftwareElement) -> None:
    answer = element.transmit(SELECT + b"\x00")
    fci = Fci.decode(answer[:-2])
    assert fci.versions == (ProtocolVersion.TLS_1_3, ProtocolVersion.TLS_1_2)
    assert fci.version == 1
    assert Features.SOFTWARE in fci.features
    assert len(fci.serial) == 8
    assert not fci.limits.extended


def test_serial_number_lasts_and_differs(tmp_path: Path) -> None:
    first, second = bare_element(tmp_path / "a"), bare_element(tmp_path / "b")
    answers = [element.transmit(SELECT + b"\x00") for element in (first, first, second)]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("", "67 00"),
        ("A0 80 00", "67 00"),
        ("00 A4 04 00 05 A0 00 00 00 01", "6A 82"),
        ("00 A4 00 00 02 3F 00", "6B 00"),
        ("80 A4 04 00 02 3F 00", "6E 00"),
        ("00 20 00 00", "6E 00"),
        ("A0 60 01 00 01 00", "6D 00"),
        ("A0 88 00 00 01 00", "6D 00"),
        ("A0 26 00 00 08 31 32 33 34 FF FF FF FF", "6D 00"),
        ("A0 20 00 07", "6B 00"),
        ("A0 20 01 00", "6B 00"),
        ("A0 C0 00 00 10", "69 85"),
        ("A0 12 00 00 00", "69 85"),
        ("A0 12 00 00", "67 00"),
        ("A0 12 01 00 00", "6B 00"),
        ("A0 80 00 00 00 01 00" + "00" * 256, "67 00"),
        ("A0 18 00 00 00 01 01", "67 00"),
    ],
)
def test_refusals(element: SoftwareElement, command: str, answer: str) -> None:
    assert send(selected(element), command) == answer


def test_nothing_works_before_select(element: SoftwareElement) -> None:
    assert send(element, VERIFY_USER.hex()) == "69 85"
    assert send(element, "A0 80 00 00 01 00") == "69 85"


def test_every_instruction_there_is_stands_in_the_table(card: Card) -> None:
    """No command signs, decrypts or reads what the profile does not name."""
    element = selected(card.backend.connect(NAME), VERIFY_USER, VERIFY_OPERATOR)
    answered = {ins for ins in range(256) if element.transmit(bytes((0xA0, ins, 0xFF, 0xFF))) != b"\x6d\x00"}
    assert answered == set(Instruction) | {0xA4}


def test_short_answer_goes_out_at_once_where_le_allows_it(card: Card) -> None:
    element = selected(card.backend.connect(NAME), VERIFY_USER)
    assert send(element, "A0 18 00 00 00") == "77 65 62 30 31 90 00"


def test_answer_without_le_is_announced(card: Card) -> None:
    element = selected(card.backend.connect(NAME), VERIFY_USER)
    assert send(element, "A0 18 00 00") == "61 05"
    assert send(element, "A0 C0 00 00 02") == "77 65 61 03"
    assert send(element, "A0 C0 00 00 03") == "62 30 31 90 00"
    assert send(element, "A0 C0 00 00 03") == "69 85"


def test_too_short_le_is_corrected_and_the_command_not_run_twice(card: Card) -> None:
    element = selected(card.backend.connect(NAME), VERIFY_OPERATOR)
    assert send(element, "A0 17 00 81 03 62 62 62") == "90 00"
    assert send(element, "A0 17 00 01 01") == "6C 05"
    assert send(element, "A0 17 00 01 05") == "77 65 62 30 31 90 00"
    assert send(element, "A0 17 00 01 01") == "6C 03"
    assert send(element, "A0 17 00 01 03") == "62 62 62 90 00"


def test_corrected_le_counts_only_for_the_same_command(card: Card) -> None:
    element = selected(card.backend.connect(NAME), VERIFY_USER)
    assert send(element, "A0 18 00 00 01") == "6C 05"
    assert send(element, "A0 C0 00 00 05") == "69 85"
    assert send(element, "A0 18 00 00 05") == "77 65 62 30 31 90 00"


def test_long_answer_is_fetched_in_parts(card: Card) -> None:
    element = selected(card.backend.connect(NAME), VERIFY_USER)
    whole = b""
    answer = element.transmit(bytes.fromhex("A0 1A 00 00 00"))
    assert answer == b"\x9f\x00"
    while answer[-2] == 0x9F:
        answer = element.transmit(bytes.fromhex("A0 12 00 00") + answer[-1:])
        whole += answer[:-2]
    assert answer[-2:] == b"\x90\x00"
    assert ProfileData.decode(whole).chain == client_identity().chain_der


def test_another_command_drops_what_is_left(card: Card) -> None:
    element = selected(card.backend.connect(NAME), VERIFY_USER)
    assert send(element, "A0 1A 00 00 00", "A0 19 00 00 01", "A0 12 00 00 00") == "69 85"


def test_parts_of_another_command_drop_the_parts_before(card: Card) -> None:
    element = selected(card.backend.connect(NAME), VERIFY_USER)
    assert send(element, "A0 80 01 00 02 01 01") == "90 00"
    assert send(element, "A0 19 00 00 01")[-5:] == "90 00"
    assert send(element, "A0 80 00 00 03 00 05 01") == "70 00"


def test_parts_are_bounded(card: Card) -> None:
    element = selected(card.backend.connect(NAME), VERIFY_USER)
    part = bytes.fromhex("A0 80 01 00 FF") + bytes(255)
    answers = {element.transmit(part) for _ in range(300)}
    assert answers == {b"\x90\x00", b"\x6a\x84"}
    assert send(element, "A0 80 01 00") == "67 00"


def test_t0_has_no_le_behind_data(tmp_path: Path) -> None:
    element = bare_element(tmp_path, ElementOptions(t0=True))
    assert element.transmit(SELECT + b"\x00") == b"\x67\x00"
    announced = element.transmit(SELECT)
    assert announced[0] == 0x61
    answer = element.transmit(bytes.fromhex("00 C0 00 00") + announced[1:])
    assert answer[-2:] == b"\x90\x00"
    Fci.decode(answer[:-2])


def test_t0_wants_the_exact_le(tmp_path: Path) -> None:
    backend = SoftwareBackend(tmp_path, SEALING_KEY, options=ElementOptions(t0=True))
    backend.create(NAME, PINS)
    backend.open_issuer(NAME, PINS.operator).close()
    element = selected(backend.connect(NAME), VERIFY_USER)
    assert send(element, "A0 18 00 00 00") == "6C 05"
    assert send(element, "A0 18 00 00 05") == "77 65 62 30 31 90 00"
    assert send(element, "A0 16 00 80 05 77 65 62 30 31", "A0 80 00 00 05 01 A5 00 05 01") == "61 0A"
    assert send(element, "A0 C0 00 00 FF") == "6C 0A"
    assert send(element, "A0 C0 00 00 0A") == "02 A5 00 0A 01 77 65 62 30 31 90 00"


def test_extended_apdus_are_for_cards_that_have_them(tmp_path: Path) -> None:
    element = bare_element(tmp_path, ElementOptions(extended=True))
    extended_select = bytes.fromhex("00 A4 04 00 00 00 10") + AID + bytes(2)
    fci = Fci.decode(element.transmit(extended_select)[:-2])
    assert fci.limits.extended
    assert bare_element(tmp_path / "short").transmit(extended_select) == b"\x67\x00"


def test_annex_5_of_the_draft_up_to_its_md5(tmp_path: Path) -> None:
    """The commands of the trace, with our AID and an element that has no MD5 but says what it has."""
    backend = SoftwareBackend(tmp_path, SEALING_KEY, options=ElementOptions(t0=True))
    backend.create("abcd", PINS)
    backend.open_issuer("abcd", PINS.operator).close()
    element = selected(backend.connect("abcd"))
    assert send(element, "A0 18 00 00 00") == "63 03"
    assert send(element, VERIFY_USER.hex()) == "90 00"
    assert send(element, "A0 18 00 00 00") == "6C 04"
    assert send(element, "A0 18 00 00 04") == "61 62 63 64 90 00"
    assert send(element, "A0 17 00 01 00") == "6C 04"
    assert send(element, "A0 17 00 01 04") == "61 62 63 64 90 00"
    assert send(element, "A0 16 00 80 04 61 62 63 64") == "90 00"
    assert send(element, "A0 80 00 00 05 01 A5 00 05 01") == "61 09"
    assert send(element, "A0 C0 00 00 09") == "02 A5 00 09 01 61 62 63 64 90 00"
    assert send(element, "A0 80 00 00 08 01 A6 00 08 04 02 12 34") == "61 06"
    assert send(element, "A0 C0 00 00 06") == "02 A6 00 06 03 0D 90 00"


def test_element_that_breaks_down_answers_and_starts_afresh(
    card: Card, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*arguments: object) -> bytes:
        raise AssertionError("a mistake of ours")

    element = selected(card.backend.connect(NAME), VERIFY_USER)
    monkeypatch.setattr("dom0_broker.backends.software.eap_tls_applet.EapTlsApplet.process_eap", bug)
    assert send(element, "A0 80 00 00 01 00") == "6F 00"
    assert "broke down" in caplog.text
    assert send(element, "A0 18 00 00 00") == "69 85"
