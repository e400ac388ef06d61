"""The PIV application of the software element, through APDUs (NIST SP 800-73-4 part 2)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from dom0_broker.backends.base import Pins
from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import Applications, ElementOptions, SoftwareElement
from dom0_broker.backends.software.keystore import Contents, Keystore, fresh_contents
from dom0_broker.backends.software.pin import StoredPin
from dom0_broker.backends.software.piv_store import PivSecrets, fresh_piv
from tests.support.cards import NAME, PINS, SEALING_KEY
from tests.support.piv import BOTH, SECRETS, personalised, piv_backend
from vmtoken.cards.codes import AID as EAP_TLS_AID
from vmtoken.cards.piv_codes import Algorithm, Slot
from vmtoken.errors import Conflict, InvalidRequest
from vmtoken.iso7816.tlv import BerTlv, encode_tlv
from vmtoken.secret import SecretBytes

SELECT = "00 A4 04 00 0B A0 00 00 03 08 00 00 10 00 01 00"
VERIFY = "00 20 00 80 08 36 35 34 33 32 31 FF FF"
WRONG = "00 20 00 80 08 30 30 30 30 30 30 FF FF"
TRIES = "00 20 00 80"
GET_CHUID = "00 CB 3F FF 05 5C 03 5F C1 02 00"
GENERATE_P256 = "00 47 00 9A 05 AC 03 80 01 11 00"
PUT_CHUID = "00 DB 3F FF 0A 5C 03 5F C1 02 53 03 30 01 00"


@pytest.fixture
def backend(tmp_path: Path) -> SoftwareBackend:
    return piv_backend(tmp_path, options=BOTH)


@pytest.fixture
def element(backend: SoftwareBackend) -> SoftwareElement:
    element = backend.connect(NAME)
    assert send(element, SELECT).endswith("9000")
    return element


def send(element: SoftwareElement, command: str) -> str:
    return element.transmit(bytes.fromhex(command)).hex()


def authenticate(element: SoftwareElement) -> None:
    """External authentication with the management key."""
    challenge = bytes.fromhex(send(element, "00 87 0C 9B 04 7C 02 81 00 00"))[4:-2]
    encryptor = Cipher(AES(SECRETS.management_key.reveal()), modes.ECB()).encryptor()
    response = encode_tlv(0x7C, encode_tlv(0x82, encryptor.update(challenge)))
    assert send(element, f"00 87 0C 9B {len(response):02X} {response.hex()}") == "9000"


def sign(element: SoftwareElement, slot: str = "9A", algorithm: str = "11", length: int = 32) -> str:
    challenge = encode_tlv(0x7C, encode_tlv(0x82, b"") + encode_tlv(0x81, bytes(range(length))))
    return send(element, f"00 87 {algorithm} {slot} {len(challenge):02X} {challenge.hex()} 00")


@pytest.mark.parametrize(
    "name",
    ["A000000308000010000100", "A00000030800001000", "A000000308"],
    ids=["whole", "without version", "provider"],
)
def test_application_is_selected_by_its_name_or_the_beginning_of_it(
    backend: SoftwareBackend, name: str
) -> None:
    element = backend.connect(NAME)
    answer = send(element, f"00 A4 04 00 {len(name) // 2:02X} {name} 00")
    template = BerTlv.decode(bytes.fromhex(answer[:-4]))
    assert template.tag == 0x61
    fields = {item.tag: item.value for item in BerTlv.decode_all(template.value)}
    assert fields[0x4F].hex() == "000010000100"
    assert fields[0x50] == b"vmtoken software element"


@pytest.mark.parametrize(
    "name", ["A0000003", "A000000309", "A00000030800001000010000", "A000000308000010000200", ""]
)
def test_other_names_select_nothing_and_change_nothing(element: SoftwareElement, name: str) -> None:
    assert send(element, VERIFY) == "9000"
    lc = f"{len(name) // 2:02X}" if name else ""
    assert send(element, f"00 A4 04 00 {lc} {name} 00") == "6a82"
    assert send(element, TRIES) == "9000"


def test_pin_outlives_a_second_select_but_not_another_application(element: SoftwareElement) -> None:
    """Part 2 section 3.1.1."""
    assert send(element, VERIFY) == "9000"
    send(element, SELECT)
    assert send(element, TRIES) == "9000"
    element.transmit(bytes.fromhex("00 A4 04 00 10") + EAP_TLS_AID)
    send(element, SELECT)
    assert send(element, TRIES) == "63c3"


def test_applications_do_not_take_each_others_commands(element: SoftwareElement) -> None:
    assert send(element, "A0 20 00 00") == "6e00"
    element.transmit(bytes.fromhex("00 A4 04 00 10") + EAP_TLS_AID)
    assert send(element, TRIES) == "6e00"


def test_element_has_the_applications_that_its_options_say(tmp_path: Path) -> None:
    backend = piv_backend(tmp_path)
    assert send(backend.connect(NAME), "00 A4 04 00 10" + EAP_TLS_AID.hex()) == "6a82"
    eap_tls = SoftwareBackend(tmp_path, SEALING_KEY)
    assert send(eap_tls.connect(NAME), SELECT) == "6a82"
    eap_tls.create("plain", PINS)
    piv = SoftwareBackend(tmp_path, SEALING_KEY, options=ElementOptions(applications=Applications.PIV))
    with pytest.raises(Conflict, match="without the PIV application"):
        piv.connect("plain")


def test_pin_is_counted_blocked_and_unblocked(element: SoftwareElement) -> None:
    assert [send(element, WRONG) for _ in range(4)] == ["63c2", "63c1", "6983", "6983"]
    assert send(element, VERIFY) == "6983"
    unblock = "00 2C 00 80 10 {} 31 32 33 34 35 36 FF FF"
    assert send(element, unblock.format("30" * 8)) == "63c2"
    assert send(element, unblock.format("38 37 36 35 34 33 32 31")) == "9000"
    assert send(element, TRIES) == "63c3"
    assert send(element, "00 20 00 80 08 31 32 33 34 35 36 FF FF") == "9000"


def test_wrong_pin_takes_back_what_the_right_one_gave(element: SoftwareElement) -> None:
    assert send(element, VERIFY) == "9000"
    assert send(element, WRONG) == "63c2"
    assert send(element, TRIES) == "63c2"


def test_pin_status_can_be_given_back(element: SoftwareElement) -> None:
    """VERIFY with P1 = FF (section 3.2.1)."""
    assert send(element, VERIFY) == "9000"
    assert send(element, "00 20 FF 80") == "9000"
    assert send(element, TRIES) == "63c3"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("00 20 00 80 06 36 35 34 33 32 31", "6a80"),
        ("00 20 00 80 08 61 62 63 64 65 66 FF FF", "6a80"),
        ("00 20 00 80 08 31 32 FF FF FF FF FF FF", "6a80"),
        ("00 20 00 81 08 36 35 34 33 32 31 FF FF", "6a88"),
        ("00 20 00 00", "6a88"),
        ("00 20 01 80", "6a86"),
        ("00 24 00 80 10" + "30" * 6 + "FFFF" + "61" * 8, "6a80"),
        ("00 24 00 80 08" + "30" * 8, "6700"),
        ("00 24 00 82 10" + "30" * 16, "6a88"),
        ("00 2C 00 80 10" + "30" * 8 + "61" * 8, "6a80"),
        ("00 2C 00 81 10" + "30" * 16, "6a88"),
    ],
)
def test_senseless_pin_commands_spend_no_try(element: SoftwareElement, command: str, answer: str) -> None:
    assert send(element, command) == answer
    assert send(element, TRIES) == "63c3"


def test_power_cut_during_the_comparison_has_spent_the_try(
    backend: SoftwareBackend, element: SoftwareElement, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(pin: StoredPin, candidate: bytes) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(StoredPin, "matches", power_cut)
    with pytest.raises(KeyboardInterrupt):
        send(element, VERIFY)
    piv = Keystore.load(backend._directory / f"{NAME}.element", SEALING_KEY).contents.piv
    assert piv is not None
    assert piv.pin.tries_left == 2


def test_keys_need_the_pin_as_the_standard_says(backend: SoftwareBackend) -> None:
    for slot in (Slot.AUTHENTICATION, Slot.SIGNATURE, Slot.KEY_MANAGEMENT, Slot.CARD_AUTHENTICATION):
        personalised(backend, slot=slot)
    element = backend.connect(NAME)
    send(element, SELECT)
    assert [sign(element, slot)[-4:] for slot in ("9A", "9C", "9D", "9E")] == ["6982", "6982", "6982", "9000"]
    send(element, VERIFY)
    assert [sign(element, slot)[-4:] for slot in ("9C", "9A", "9D", "9C")] == ["9000", "9000", "9000", "6982"]
    send(element, VERIFY)
    send(element, GET_CHUID)
    assert sign(element, "9C") == "6982"


def test_only_a_key_of_the_algorithm_and_a_challenge_of_its_length_is_used(backend: SoftwareBackend) -> None:
    personalised(backend)
    element = backend.connect(NAME)
    send(element, SELECT)
    send(element, VERIFY)
    assert sign(element, algorithm="14") == "6a86"
    assert sign(element, slot="9C") == "6a88"
    assert sign(element, slot="96") == "6a86"
    assert sign(element, length=33) == "6a80"
    assert sign(element, length=20).endswith("9000")
    assert send(element, "00 87 11 9A 04 7C 02 81 00 00") == "6a80"
    assert send(element, "00 87 11 9A 02 7C 00 00") == "6a80"
    assert send(element, "00 87 11 9A 02 7D 00 00") == "6a80"


def test_shared_secret_is_that_of_the_other_side(backend: SoftwareBackend) -> None:
    holder = personalised(backend, slot=Slot.KEY_MANAGEMENT)
    card_key = holder.identity.certificate.public_key()
    assert isinstance(card_key, ec.EllipticCurvePublicKey)
    ours = ec.generate_private_key(ec.SECP256R1())
    numbers = ours.public_key().public_numbers()
    point = b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    template = encode_tlv(0x7C, encode_tlv(0x82, b"") + encode_tlv(0x85, point))
    element = backend.connect(NAME)
    send(element, SELECT)
    send(element, VERIFY)
    answer = bytes.fromhex(send(element, f"00 87 11 9D {len(template):02X} {template.hex()} 00"))
    assert answer[4:-2] == ours.exchange(ec.ECDH(), card_key)
    off_the_curve = encode_tlv(0x7C, encode_tlv(0x82, b"") + encode_tlv(0x85, point[:-1] + b"\x00"))
    assert send(element, f"00 87 11 9D {len(off_the_curve):02X} {off_the_curve.hex()} 00") == "6a80"


@pytest.mark.parametrize("command", [GENERATE_P256, PUT_CHUID])
def test_changes_need_the_management_key(element: SoftwareElement, command: str) -> None:
    send(element, VERIFY)
    assert send(element, command) == "6982"
    authenticate(element)
    assert send(element, command).endswith("9000")
    element.reset()
    send(element, SELECT)
    assert send(element, command) == "6982"


def test_management_key_must_be_shown_afresh_and_in_order(element: SoftwareElement) -> None:
    response = "00 87 0C 9B 14 7C 12 82 10" + "00" * 16
    witness = "00 87 0C 9B 26 7C 24 80 10" + "00" * 16 + "81 10" + "00" * 16 + "00"
    for command in (response, witness):
        assert send(element, command) == "6982"
    assert send(element, "00 87 0C 9B 04 7C 02 81 00 00").endswith("9000")
    assert send(element, witness) == "6982"
    assert send(element, response) == "6982"
    assert send(element, "00 87 0C 9B 04 7C 02 80 00 00").endswith("9000")
    assert send(element, "00 87 0C 9B 04 7C 02 81 00 00").endswith("9000")
    assert send(element, witness) == "6982"
    assert send(element, "00 87 03 9B 04 7C 02 80 00 00") == "6a86"
    assert send(element, GENERATE_P256) == "6982"


def test_management_key_encrypts_nothing_that_others_chose(element: SoftwareElement) -> None:
    """With a challenge alone, or before the witness was shown, it would be an oracle."""
    challenge = "81 10" + "00" * 16
    assert send(element, f"00 87 0C 9B 14 7C 12 {challenge} 00") == "6a80"
    assert send(element, f"00 87 0C 9B 16 7C 14 {challenge} 82 00 00") == "6a80"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("00 CB 3F FF 05 5C 03 5F C1 05 00", "6a82"),
        ("00 CB 3F FF 03 5C 01 7E 00", "7e124f0ba0000003080000100001005f2f0240009000"),
        ("00 CB 3F FE 05 5C 03 5F C1 02 00", "6a86"),
        ("00 CB 3F FF 04 5C 03 5F C1 00", "6a80"),
        ("00 CB 3F FF 02 5D 00 00", "6a80"),
        ("00 FD 00 00 00", "6d00"),
        ("80 CB 3F FF 05 5C 03 5F C1 02 00", "6e00"),
    ],
)
def test_reading(element: SoftwareElement, command: str, answer: str) -> None:
    assert send(element, command) == answer


def test_printed_information_needs_the_pin(element: SoftwareElement) -> None:
    authenticate(element)
    assert send(element, "00 DB 3F FF 09 5C 03 5F C1 09 53 02 01 00") == "9000"
    read = "00 CB 3F FF 05 5C 03 5F C1 09 00"
    assert send(element, read) == "6982"
    send(element, VERIFY)
    assert send(element, read) == "530201009000"


def test_data_object_is_replaced_and_deleted(element: SoftwareElement) -> None:
    authenticate(element)
    assert send(element, PUT_CHUID) == "9000"
    assert send(element, GET_CHUID) == "53033001009000"
    assert send(element, "00 DB 3F FF 07 5C 03 5F C1 02 53 00") == "9000"
    assert send(element, GET_CHUID) == "6a82"
    assert send(element, "00 DB 3F FF 09 5C 03 5F C2 02 53 02 00 00") == "6a81"
    assert send(element, "00 DB 3F FF 05 5C 03 5F C1 02") == "6a80"


def test_long_data_comes_and_goes_in_parts(element: SoftwareElement) -> None:
    authenticate(element)
    value = bytes(index % 251 for index in range(2000))
    data = bytes.fromhex("5C 03 5F C1 05") + encode_tlv(0x53, value)
    while len(data) > 200:
        assert send(element, "10 DB 3F FF C8" + data[:200].hex()) == "9000"
        data = data[200:]
    assert send(element, f"00 DB 3F FF {len(data):02X}" + data.hex()) == "9000"
    answer = element.transmit(bytes.fromhex("00 CB 3F FF 05 5C 03 5F C1 05 00"))
    read = answer[:-2]
    while answer[-2] == 0x61:
        answer = element.transmit(bytes((0x00, 0xC0, 0x00, 0x00, answer[-1])))
        read += answer[:-2]
    assert BerTlv.decode(read).value == value


def test_endless_command_is_cut_off(element: SoftwareElement) -> None:
    authenticate(element)
    answers = [send(element, "10 DB 3F FF FF" + "00" * 255) for _ in range(40)]
    assert "6a84" in answers
    assert send(element, TRIES) == "63c3"


@pytest.mark.parametrize(
    "secrets",
    [
        PivSecrets(SecretBytes(b"12345"), SECRETS.puk, SECRETS.management_key),
        PivSecrets(SecretBytes(b"abcdef"), SECRETS.puk, SECRETS.management_key),
        PivSecrets(SECRETS.pin, SecretBytes(b""), SECRETS.management_key),
        PivSecrets(SECRETS.pin, SecretBytes(b"123456789"), SECRETS.management_key),
        PivSecrets(SECRETS.pin, SECRETS.puk, SecretBytes(bytes(24))),
        PivSecrets(SECRETS.pin, SECRETS.puk, SECRETS.management_key, Algorithm.ECC_P256),
    ],
)
def test_secrets_of_a_new_application_must_be_fit(secrets: PivSecrets) -> None:
    with pytest.raises(InvalidRequest):
        fresh_piv(secrets)


def test_random_secrets_are_fit_and_differ() -> None:
    first, second = PivSecrets.random(), PivSecrets.random()
    assert fresh_piv(first) != fresh_piv(second)
    assert first.management_key != second.management_key


def test_secrets_are_not_printed() -> None:
    piv = fresh_piv(PivSecrets.well_known())
    assert "0102" not in repr(piv)
    assert "\\x01\\x02" not in repr(piv)


def test_elements_made_before_there_was_piv_open_as_ever(tmp_path: Path) -> None:
    pin = StoredPin.of(b"12345678", 3)
    fields = msgspec.to_builtins(fresh_contents(pin, pin), builtin_types=(bytes,))
    del fields["piv"]
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Contents)
    assert read.piv is None
    assert read.user_pin == pin


def test_new_pins_of_both_applications_are_their_own(backend: SoftwareBackend) -> None:
    backend.create("other", Pins(SecretBytes(b"1234"), SecretBytes(b"5678")), PivSecrets.random())
    element = backend.connect("other")
    assert send(element, SELECT).endswith("9000")
    assert send(element, VERIFY) == "63c2"
    assert backend.pin_state("other").tries_left == 3
