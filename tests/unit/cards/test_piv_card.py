"""PivCard against the software element: what it is, when it gives the PIN, whose certificate it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import SoftwareElement
from tests.fakes.card import RecordingCard
from tests.support.cards import NAME, PINS, personalise
from tests.support.piv import BOTH, SECRETS, PivHolder, certified, personalised, piv_backend, piv_issuer
from tests.support.pki import KeyKind, client_identity
from vmtoken.cards import piv_pins
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_codes import DataObject, Instruction, Slot
from vmtoken.errors import (
    InvalidRequest,
    PinBlocked,
    PinMissing,
    PinRejected,
    TokenNotReady,
    TokenUnavailable,
)
from vmtoken.iso7816.apdu import CommandApdu
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.signatures import PublicKey
from vmtoken.token import Assurance

CONTENT = b"a transcript"
WRONG = SecretBytes(b"000000")
SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def backend(tmp_path: Path) -> SoftwareBackend:
    return piv_backend(tmp_path)


@pytest.fixture
def holder(backend: SoftwareBackend) -> PivHolder:
    return personalised(backend)


def verifies(card: PivCard) -> bool:
    public = PublicKey.of(x509.load_der_x509_certificate(card.certificate_chain[0]))
    scheme = card.schemes[0]
    return public.has_signed(scheme, card.sign(scheme, CONTENT), CONTENT)


def tries_left(backend: SoftwareBackend) -> int | None:
    return piv_pins.user_pin_tries_left(backend.connect(NAME))


def instructions(card: RecordingCard) -> list[int]:
    """INS of what was sent, without questions for tries and parts of answers."""
    commands = [CommandApdu.decode(command) for command, _ in card.exchanges]
    asked = (command for command in commands if command.ins != Instruction.VERIFY or command.data)
    return [command.ins for command in asked if command.ins != 0xC0]


def change_piv(backend: SoftwareBackend, **changes: object) -> None:
    keystore = backend._keystore(NAME)
    piv = keystore.contents.piv
    assert piv is not None
    keystore.save(msgspec.structs.replace(keystore.contents, piv=msgspec.structs.replace(piv, **changes)))


def without_object(backend: SoftwareBackend, tag: int) -> None:
    piv = backend._keystore(NAME).contents.piv
    assert piv is not None
    change_piv(backend, objects={name: value for name, value in piv.objects.items() if name != tag})


def test_card_says_what_it_is(holder: PivHolder) -> None:
    card = holder.key()
    assert len(bytes.fromhex(card.serial)) == 16
    assert card.application == "PIV, slot 9A"
    assert card.assurance is Assurance.SOFTWARE
    assert card.traffic.apdus > 3
    card.close()


@pytest.mark.parametrize("slot", Slot, ids=str)
def test_every_slot_signs(backend: SoftwareBackend, slot: Slot) -> None:
    card = personalised(backend, slot=slot).key()
    for _ in range(2):
        assert verifies(card)
    card.close()


def test_rsa_keys_offer_both_paddings_and_ecdsa_keys_their_curve_first(tmp_path: Path) -> None:
    rsa_key = personalised(piv_backend(tmp_path), KeyKind.RSA_2048).key()
    assert rsa_key.schemes[0] is SignatureScheme.RSA_PSS_RSAE_SHA256
    assert SignatureScheme.RSA_PKCS1_SHA256 in rsa_key.schemes
    rsa_key.close()


@pytest.mark.parametrize("text", ["9a", "9A", "9c", "9d", "9e", "82", "95"])
def test_slots_are_called_as_people_do(text: str) -> None:
    assert str(Slot.of(text)).lower() == text.lower()


@pytest.mark.parametrize("text", ["", "9b", "81", "96", "slot", "-1", "100000"])
def test_other_slots_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="9a, 9c, 9d, 9e"):
        Slot.of(text)


def test_pin_is_given_once_in_slot_9a(holder: PivHolder) -> None:
    recording = RecordingCard(holder.connect())
    card = PivCard(recording, SECRETS.pin)
    recording.exchanges.clear()
    for _ in range(3):
        assert verifies(card)
    assert instructions(recording) == [Instruction.GENERAL_AUTHENTICATE] * 3


def test_pin_is_given_directly_before_each_signature_in_slot_9c(backend: SoftwareBackend) -> None:
    holder = personalised(backend, slot=Slot.SIGNATURE)
    recording = RecordingCard(holder.connect())
    card = PivCard(recording, SECRETS.pin, slot=Slot.SIGNATURE)
    recording.exchanges.clear()
    for _ in range(3):
        assert verifies(card)
    assert instructions(recording) == [Instruction.VERIFY, Instruction.GENERAL_AUTHENTICATE] * 3


def test_card_authentication_needs_no_pin(backend: SoftwareBackend) -> None:
    personalised(backend, slot=Slot.CARD_AUTHENTICATION)
    assert verifies(PivCard(backend.connect(NAME), None, slot=Slot.CARD_AUTHENTICATION))
    with pytest.raises(PinMissing):
        PivCard(backend.connect(NAME), None, slot=Slot.AUTHENTICATION)


def test_wrong_pin_is_tried_once_and_the_last_try_never(holder: PivHolder) -> None:
    with pytest.raises(PinRejected) as caught:
        PivCard(holder.connect(), WRONG)
    assert caught.value.retries_left == 2
    with pytest.raises(PinRejected):
        PivCard(holder.connect(), WRONG)
    for pin in (WRONG, SECRETS.pin):
        with pytest.raises(PinBlocked, match="only 1 try left, too few to risk one; unblock it with the PUK"):
            PivCard(holder.connect(), pin)
    assert tries_left(holder.backend) == 1
    assert verifies(PivCard(holder.connect(), SECRETS.pin, pin_reserve=0))


@pytest.mark.parametrize("slot", [Slot.AUTHENTICATION, Slot.SIGNATURE, Slot.CARD_AUTHENTICATION], ids=str)
def test_card_that_was_reset_gets_its_pin_again_once(backend: SoftwareBackend, slot: Slot) -> None:
    holder = personalised(backend, slot=slot)
    recording = RecordingCard(holder.connect())
    card = PivCard(recording, SECRETS.pin, slot=slot)
    for _ in range(2):
        recording.reset()
        assert verifies(card)
    assert tries_left(backend) == 3


def test_pin_that_was_changed_meanwhile_costs_one_try_and_the_card(holder: PivHolder) -> None:
    recording = RecordingCard(holder.connect())
    card = PivCard(recording, SECRETS.pin)
    scheme = card.schemes[0]
    piv_pins.change_user_pin(holder.connect(), SECRETS.pin, SecretBytes(b"111111"))
    recording.reset()
    recording.exchanges.clear()
    with pytest.raises(PinRejected):
        card.sign(scheme, CONTENT)
    for _ in range(3):
        with pytest.raises(TokenUnavailable):
            card.sign(scheme, CONTENT)
    assert instructions(recording).count(Instruction.VERIFY) == 1
    assert tries_left(holder.backend) == 2


class Swapped:
    """A connection behind which another card can be put."""

    def __init__(self, first: SoftwareElement) -> None:
        self.card = first
        self.transmit: Callable[[bytes], bytes] = lambda command: self.card.transmit(command)

    def reset(self) -> None:
        self.card.reset()

    def close(self) -> None:
        self.card.close()


def test_another_card_is_not_given_the_pin(holder: PivHolder, tmp_path: Path) -> None:
    other = personalised(piv_backend(tmp_path / "other"))
    connection = Swapped(holder.connect())
    recording = RecordingCard(connection)
    card = PivCard(recording, SECRETS.pin)
    connection.card = other.connect()
    recording.exchanges.clear()
    with pytest.raises(TokenUnavailable, match="another card"):
        card.sign(card.schemes[0], CONTENT)
    assert Instruction.VERIFY not in instructions(recording)


def test_another_card_without_chuid_is_told_by_its_certificate(holder: PivHolder, tmp_path: Path) -> None:
    other = personalised(piv_backend(tmp_path / "other"))
    for backend in (holder.backend, other.backend):
        without_object(backend, DataObject.CARD_HOLDER_UNIQUE_IDENTIFIER)
    connection = Swapped(holder.connect())
    recording = RecordingCard(connection)
    card = PivCard(recording, SECRETS.pin)
    connection.card.reset()
    assert verifies(card)
    connection.card = other.connect()
    recording.exchanges.clear()
    with pytest.raises(TokenUnavailable, match="another card"):
        card.sign(card.schemes[0], CONTENT)
    assert Instruction.VERIFY not in instructions(recording)


def test_pin_that_no_card_takes_never_reaches_it(holder: PivHolder) -> None:
    for pin in (b"", b"123456789"):
        with pytest.raises(InvalidRequest, match="1 to 8"):
            PivCard(holder.connect(), SecretBytes(pin))
    assert tries_left(holder.backend) == 3


def test_card_without_chuid_has_no_serial(holder: PivHolder) -> None:
    without_object(holder.backend, DataObject.CARD_HOLDER_UNIQUE_IDENTIFIER)
    card = holder.key()
    assert card.serial == ""
    assert verifies(card)


def test_card_without_certificate_signs_nothing(backend: SoftwareBackend) -> None:
    card = PivCard(backend.connect(NAME), SECRETS.pin)
    assert not card.certificate_chain
    assert not card.schemes
    with pytest.raises(ValueError, match="does not sign"):
        card.sign(SignatureScheme.ECDSA_SECP256R1_SHA256, CONTENT)
    card.close()


def test_fresh_key_has_no_certificate_yet(backend: SoftwareBackend) -> None:
    issuer = piv_issuer(backend)
    info = issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    issuer.close()
    card = PivCard(backend.connect(NAME), SECRETS.pin)
    assert not card.certificate_chain
    card.close()
    kept = certified(info).chain_der
    assert verifies(PivCard(backend.connect(NAME), SECRETS.pin, kept_chain=kept))
    stale = PivCard(backend.connect(NAME), SECRETS.pin, kept_chain=client_identity().chain_der)
    assert not stale.certificate_chain


def test_leaf_of_the_card_counts_where_nothing_is_kept(holder: PivHolder) -> None:
    card = PivCard(holder.connect(), SECRETS.pin)
    assert card.certificate_chain == holder.identity.chain_der[:1]
    card.close()


def test_kept_chain_serves_a_card_without_room_for_certificates(holder: PivHolder) -> None:
    without_object(holder.backend, Slot.AUTHENTICATION.certificate_tag)
    assert verifies(holder.key())


def test_kept_chain_of_another_key_is_not_shown(holder: PivHolder) -> None:
    with pytest.raises(TokenNotReady, match="another certificate in slot 9A"):
        PivCard(holder.connect(), SECRETS.pin, kept_chain=client_identity().chain_der)


def test_kept_chain_does_not_stand_for_a_missing_key(backend: SoftwareBackend) -> None:
    card = PivCard(backend.connect(NAME), SECRETS.pin, kept_chain=client_identity().chain_der)
    with pytest.raises(TokenNotReady, match="no key in slot 9A"):
        card.sign(card.schemes[0], CONTENT)


def test_renewed_certificate_is_kept_by_the_broker_first(holder: PivHolder) -> None:
    info = holder.identity.certificate.public_key().public_bytes(*SPKI)
    renewed = certified(info)
    card = PivCard(holder.connect(), SECRETS.pin, kept_chain=renewed.chain_der)
    assert card.certificate_chain == renewed.chain_der
    card.close()


def test_cards_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    directory = tmp_path / "elements"
    piv_only = piv_backend(directory)
    with pytest.raises(TokenUnavailable, match="no EAP-TLS application"):
        EapTlsCard(piv_only.connect(NAME), PINS.user)
    eap_tls_only = SoftwareBackend(directory, piv_only._sealing_key)
    with pytest.raises(TokenUnavailable, match="no PIV application"):
        PivCard(eap_tls_only.connect(NAME), SECRETS.pin)


def test_one_card_has_both_applications(tmp_path: Path) -> None:
    backend = piv_backend(tmp_path, options=BOTH)
    issuer = backend.open_issuer(NAME, PINS.operator)
    personalise(issuer, client_identity())
    issuer.close()
    personalised(backend)
    connection = backend.connect(NAME)
    eap_tls = EapTlsCard(connection, PINS.user)
    assert eap_tls.describe().certificate_chain == client_identity().chain_der
    assert verifies(PivCard(connection, SECRETS.pin))
