"""PINs and their counters, through APDUs."""

from __future__ import annotations

import pytest

from dom0_broker.backends.base import Pins
from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import SoftwareElement
from dom0_broker.backends.software.keystore import Keystore
from dom0_broker.backends.software.pin import StoredPin
from tests.support.cards import NAME, PINS, SEALING_KEY
from vmtoken.cards.codes import AID
from vmtoken.errors import Conflict, InvalidRequest, PinBlocked, PinMissing, PinRejected, TokenNotReady
from vmtoken.secret import SecretBytes

SELECT = bytes.fromhex("00 A4 04 00 10") + AID
WRONG = SecretBytes(b"9999")


def verify(element: SoftwareElement, pin: bytes, reference: int = 0) -> str:
    return element.transmit(bytes((0xA0, 0x20, 0, reference, 8)) + pin.ljust(8, b"\xff")).hex()


@pytest.fixture
def element(backend: SoftwareBackend) -> SoftwareElement:
    element = backend.connect(NAME)
    element.transmit(SELECT)
    return element


def test_wrong_pins_are_counted_until_the_pin_is_blocked(element: SoftwareElement) -> None:
    assert [verify(element, b"9999") for _ in range(4)] == ["6302", "6301", "6983", "6983"]
    assert verify(element, b"1234") == "6983"


def test_right_pin_gives_all_tries_back(element: SoftwareElement) -> None:
    assert verify(element, b"9999") == "6302"
    assert verify(element, b"1234") == "9000"
    assert verify(element, b"9999") == "6302"


def test_wrong_pin_takes_back_what_the_right_one_gave(element: SoftwareElement) -> None:
    assert verify(element, b"1234") == "9000"
    verify(element, b"9999")
    assert element.transmit(bytes.fromhex("A0 20 00 00")).hex() == "6302"


def test_asking_for_the_counter_spends_nothing(element: SoftwareElement) -> None:
    assert {element.transmit(bytes.fromhex("A0 20 00 00")).hex() for _ in range(5)} == {"6303"}


def test_pin_of_four_octets_is_padded_by_the_card(element: SoftwareElement) -> None:
    assert element.transmit(bytes.fromhex("A0 20 00 00 04 31 32 33 34")).hex() == "9000"


@pytest.mark.parametrize("length", [1, 3, 5, 7, 9])
def test_other_lengths_spend_no_try(element: SoftwareElement, length: int) -> None:
    assert element.transmit(bytes((0xA0, 0x20, 0, 0, length)) + b"1" * length).hex() == "6700"
    assert element.transmit(bytes.fromhex("A0 20 00 00")).hex() == "6303"


def test_power_cut_during_the_comparison_has_spent_the_try(
    backend: SoftwareBackend, element: SoftwareElement, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(pin: StoredPin, candidate: bytes) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(StoredPin, "matches", power_cut)
    with pytest.raises(KeyboardInterrupt):
        verify(element, b"9999")
    kept = Keystore.load(backend._directory / f"{NAME}.element", SEALING_KEY)
    assert kept.contents.user_pin.tries_left == 2


def test_pin_is_not_looked_at_while_the_counter_cannot_be_kept(
    element: SoftwareElement, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dom0_broker.backends.software.keystore.write_atomically", disk_full)
    assert verify(element, b"1234") == "6581"
    assert element.transmit(bytes.fromhex("A0 20 00 00")).hex() == "6303"


def test_counters_survive_the_process(backend: SoftwareBackend, element: SoftwareElement) -> None:
    verify(element, b"9999")
    again = SoftwareBackend(backend._directory, SEALING_KEY).connect(NAME)
    again.transmit(SELECT)
    assert again.transmit(bytes.fromhex("A0 20 00 00")).hex() == "6302"


def test_second_connection_gives_no_second_set_of_tries(backend: SoftwareBackend) -> None:
    first, second = backend.connect(NAME), backend.connect(NAME)
    for element in (first, second):
        element.transmit(SELECT)
    assert [verify(first, b"9999"), verify(second, b"9999"), verify(first, b"9999")] == [
        "6302",
        "6301",
        "6983",
    ]


def test_user_pin_is_changed_with_the_old_one(backend: SoftwareBackend, element: SoftwareElement) -> None:
    change = bytes.fromhex("A0 24 00 00 10 31 32 33 34 FF FF FF FF") + b"newpin88"
    assert element.transmit(change).hex() == "9000"
    assert verify(element, b"1234") == "6302"
    assert verify(element, b"newpin88") == "9000"


@pytest.mark.parametrize("new", [b"123\xff\xff\xff\xff\xff", b"\xff" * 8, b"12\xff34567", b"1234567\x00"])
def test_senseless_new_pin_is_refused_before_the_old_one_is_tried(
    element: SoftwareElement, new: bytes
) -> None:
    assert element.transmit(bytes.fromhex("A0 24 00 00 10") + b"99999999" + new).hex() == "6a80"
    assert element.transmit(bytes.fromhex("A0 2C 00 00 10") + new + b"99999999").hex() == "6a80"
    assert element.transmit(bytes.fromhex("A0 20 00 00")).hex() == "6303"
    assert element.transmit(bytes.fromhex("A0 20 00 01")).hex() == "630a"


def test_operator_pin_unblocks_the_user_pin(element: SoftwareElement) -> None:
    for _ in range(3):
        verify(element, b"9999")
    unblock = bytes.fromhex("A0 2C 00 00 10") + b"5678".ljust(8, b"\xff")
    assert element.transmit(unblock + b"00000000").hex() == "6309"
    assert verify(element, b"5678") == "6983"
    assert element.transmit(unblock + b"87654321").hex() == "9000"
    assert verify(element, b"5678") == "9000"


def test_operator_pin_can_be_blocked_for_good(element: SoftwareElement) -> None:
    answers = [verify(element, b"00000000", reference=1) for _ in range(11)]
    assert answers[0] == "6309"
    assert answers[-2:] == ["6983", "6983"]
    assert verify(element, b"87654321", reference=1) == "6983"


def test_user_pin_opens_no_personalisation_and_operator_pin_no_handshake(element: SoftwareElement) -> None:
    verify(element, b"1234")
    assert element.transmit(bytes.fromhex("A0 17 00 81 01 61")).hex() == "6982"
    assert element.transmit(bytes.fromhex("A0 46 00 01")).hex() == "6982"
    assert element.transmit(bytes.fromhex("A0 DA 00 03 01 30")).hex() == "6982"
    element.transmit(SELECT)
    verify(element, b"87654321", reference=1)
    assert element.transmit(bytes.fromhex("A0 80 00 00 05 01 A5 00 05 01")).hex() == "6303"
    assert element.transmit(bytes.fromhex("A0 86 00 00 01 81")).hex() == "6303"


def test_token_needs_the_user_pin(backend: SoftwareBackend) -> None:
    with pytest.raises(PinMissing):
        backend.open(NAME, None)
    with pytest.raises(PinRejected) as caught:
        backend.open(NAME, WRONG)
    assert caught.value.retries_left == 2


def test_last_try_is_never_spent(backend: SoftwareBackend) -> None:
    for _ in range(2):
        with pytest.raises(PinRejected):
            backend.open(NAME, WRONG)
    for pin in (WRONG, PINS.user):
        with pytest.raises(PinBlocked, match="only 1 try left"):
            backend.open(NAME, pin)


def test_without_reserve_the_last_try_is_spent(backend: SoftwareBackend) -> None:
    reckless = SoftwareBackend(backend._directory, SEALING_KEY, pin_reserve=0)
    for _ in range(2):
        with pytest.raises(PinRejected):
            reckless.open(NAME, WRONG)
    with pytest.raises(PinBlocked):
        reckless.open(NAME, WRONG)
    assert reckless.pin_state(NAME).tries_left == 0
    reckless.unblock_user_pin(NAME, PINS.operator, SecretBytes(b"5678"))
    assert reckless.pin_state(NAME).tries_left == 3


def test_user_pin_is_changed_and_its_tries_are_told(backend: SoftwareBackend) -> None:
    backend.change_user_pin(NAME, PINS.user, SecretBytes(b"5678"))
    with pytest.raises(PinRejected):
        backend.open(NAME, PINS.user)
    assert backend.pin_state(NAME).tries_left == 2
    with pytest.raises(PinRejected):
        backend.change_user_pin(NAME, PINS.user, SecretBytes(b"9999"))
    with pytest.raises(PinBlocked, match="only 1 try left"):
        backend.change_user_pin(NAME, SecretBytes(b"5678"), SecretBytes(b"9999"))
    assert backend.pin_state(NAME).tries_left == 1


@pytest.mark.parametrize("new_pin", [b"123", b"12 34"])
def test_new_user_pin_must_be_a_pin(backend: SoftwareBackend, new_pin: bytes) -> None:
    with pytest.raises(Conflict, match="4 to 8"):
        backend.unblock_user_pin(NAME, PINS.operator, SecretBytes(new_pin))
    assert backend.pin_state(NAME).tries_left == 3


def test_operator_pin_that_unblocks_is_not_burnt_either(backend: SoftwareBackend) -> None:
    for _ in range(9):
        with pytest.raises(PinRejected):
            backend.unblock_user_pin(NAME, WRONG, SecretBytes(b"5678"))
    with pytest.raises(PinBlocked, match="only 1 try left"):
        backend.unblock_user_pin(NAME, PINS.operator, SecretBytes(b"5678"))


def test_operator_pin_is_changed(backend: SoftwareBackend) -> None:
    issuer = backend.open_issuer(NAME, PINS.operator)
    issuer.change_operator_pin(PINS.operator, SecretBytes(b"11112222"))
    issuer.close()
    with pytest.raises(PinRejected):
        backend.open_issuer(NAME, PINS.operator)
    backend.open_issuer(NAME, SecretBytes(b"11112222")).close()


def test_element_without_identity_is_not_ready(backend: SoftwareBackend) -> None:
    with pytest.raises(TokenNotReady, match="no identity"):
        backend.open(NAME, PINS.user)


@pytest.mark.parametrize("pin", [b"", b"123", b"123456789", b"12 34", b"12\xff4"])
def test_pins_of_a_new_element_must_be_pins(backend: SoftwareBackend, pin: bytes) -> None:
    with pytest.raises(InvalidRequest, match="4 to 8"):
        backend.create("other", Pins(user=SecretBytes(pin), operator=PINS.operator))
