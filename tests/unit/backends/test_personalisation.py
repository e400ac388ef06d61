"""Personalisation through APDUs: keys, requests, chains, trust anchors, identities."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import ExtensionOID

from dom0_broker.backends.registry import BackendSettings, backend_for
from dom0_broker.backends.software.backend import SoftwareBackend
from tests.support.cards import NAME, PINS, SEALING_KEY, Card
from tests.support.pki import KeyKind, client_identity, server_identity
from vmtoken.cards import commands
from vmtoken.cards.codes import AID, Instruction, KeyAlgorithm, PinReference
from vmtoken.cards.issuer import EapTlsIssuer
from vmtoken.cards.session import CardSession
from vmtoken.errors import (
    AlreadyExists,
    Conflict,
    InvalidRequest,
    PinMissing,
    TokenNotFound,
    TokenUnavailable,
)
from vmtoken.iso7816.apdu import CommandApdu
from vmtoken.iso7816.status import StatusWordError
from vmtoken.secret import SecretBytes


@pytest.fixture
def issuer(backend: SoftwareBackend) -> EapTlsIssuer:
    return backend.open_issuer(NAME, PINS.operator)


@pytest.mark.parametrize("algorithm", KeyAlgorithm, ids=lambda algorithm: algorithm.name)
def test_key_is_made_on_the_card_and_signs_its_own_request(
    issuer: EapTlsIssuer, algorithm: KeyAlgorithm
) -> None:
    info = issuer.generate_key(algorithm)
    assert issuer.public_key() == info
    request = x509.load_der_x509_csr(
        issuer.certificate_request("CN=web01,O=Example", ("web01.example", "www"))
    )
    assert request.is_signature_valid
    assert request.public_key() == load_der_public_key(info)
    assert request.subject.rfc4514_string() == "CN=web01,O=Example"
    names = request.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    assert isinstance(names, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["web01.example", "www"]


def test_every_key_is_another(issuer: EapTlsIssuer) -> None:
    assert issuer.generate_key(KeyAlgorithm.ED25519) != issuer.generate_key(KeyAlgorithm.ED25519)


def test_request_needs_a_key_and_names(issuer: EapTlsIssuer) -> None:
    with pytest.raises(Conflict, match="no key"):
        issuer.certificate_request("CN=web01")
    issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    with pytest.raises(Conflict, match="correct the names"):
        issuer.certificate_request("this is no name")
    with pytest.raises(InvalidRequest, match="xn--"):
        issuer.certificate_request("CN=web01", ("süd.example",))


def test_chain_must_belong_to_the_key(issuer: EapTlsIssuer) -> None:
    issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    with pytest.raises(Conflict, match="another key"):
        issuer.install_certificate_chain(client_identity().chain_der)


def test_chain_must_be_in_order(issuer: EapTlsIssuer) -> None:
    identity = client_identity()
    issuer.install_private_key(SecretBytes(identity.key_der))
    leaf, intermediate = identity.chain_der
    for chain in ([intermediate, leaf], [leaf, identity.root_der], [leaf, leaf]):
        with pytest.raises(Conflict):
            issuer.install_certificate_chain(chain)
    issuer.install_certificate_chain([leaf, intermediate, identity.root_der])


@pytest.mark.parametrize("garbage", [b"\x30\x03\x02\x01\x05", b"no DER", b"\x30\x82\x01\x00"])
def test_what_is_no_certificate_is_refused(issuer: EapTlsIssuer, garbage: bytes) -> None:
    issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    with pytest.raises(Conflict):
        issuer.install_certificate_chain([garbage])
    with pytest.raises(Conflict):
        issuer.install_trust_anchors([garbage])


def test_chain_and_anchors_are_bounded(issuer: EapTlsIssuer) -> None:
    identity = client_identity()
    issuer.install_private_key(SecretBytes(identity.key_der))
    with pytest.raises(Conflict, match="no room"):
        issuer.install_certificate_chain([identity.chain_der[0]] * 9)
    with pytest.raises(Conflict, match="no room"):
        issuer.install_trust_anchors([identity.root_der] * 65)
    with pytest.raises(Conflict, match="no room"):
        issuer.install_trust_anchors([identity.root_der] * 400)
    with pytest.raises(InvalidRequest):
        issuer.install_trust_anchors([])


def test_new_key_has_no_certificate(card: Card) -> None:
    issuer = card.issuer()
    issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    issuer.close()
    assert card.token().describe().certificate_chain == ()


def test_destroyed_key_is_gone_with_its_certificate(card: Card) -> None:
    issuer, identity = card.issuer(), client_identity()
    issuer.install_private_key(SecretBytes(identity.key_der))
    issuer.install_certificate_chain(identity.chain_der)
    issuer.destroy_key()
    with pytest.raises(Conflict, match="another key"):
        issuer.install_certificate_chain(identity.chain_der)
    issuer.close()
    assert card.token().describe().certificate_chain == ()


@pytest.mark.parametrize("kind", [kind for kind in KeyKind if kind is not KeyKind.RSA_PSS_2048])
def test_keys_can_be_brought_in(issuer: EapTlsIssuer, kind: KeyKind) -> None:
    identity = client_identity(kind)
    issuer.install_private_key(SecretBytes(identity.key_der))
    issuer.install_certificate_chain(identity.chain_der)


@pytest.mark.parametrize("pkcs8", [b"\x30\x00", b"nonsense"])
def test_what_is_no_key_is_refused(issuer: EapTlsIssuer, pkcs8: bytes) -> None:
    with pytest.raises(Conflict, match="cannot be used"):
        issuer.install_private_key(SecretBytes(pkcs8))


def test_token_that_is_open_sees_what_was_installed(card: Card) -> None:
    token = card.token()
    identity = client_identity(KeyKind.RSA_2048)
    issuer = card.issuer()
    issuer.install_private_key(SecretBytes(identity.key_der))
    issuer.install_certificate_chain(identity.chain_der)
    issuer.close()
    assert token.describe().certificate_chain == identity.chain_der


def test_identities_are_added_chosen_and_deleted(card: Card) -> None:
    session = CardSession.open(card.connect())
    channel = session.channel
    session.verify_pin(PinReference.OPERATOR, PINS.operator)
    commands.add_identity(channel, b"second")
    assert [commands.next_identity(channel) for _ in range(3)] == [b"web01", b"second", b"web01"]
    commands.set_identity(channel, b"second")
    assert commands.current_identity(channel) == b"second"
    assert commands.profile_data(channel).chain == ()
    commands.delete_identity(channel, b"second")
    assert commands.preferred_identity(channel) == b"web01"
    with pytest.raises(StatusWordError, match="6985"):
        commands.current_identity(channel)
    with pytest.raises(StatusWordError, match="6A88"):
        commands.set_identity(channel, b"second")
    session.close()


@pytest.mark.parametrize("label", [b"", b"x" * 65, b"web01", b"\xff"])
def test_labels_that_cannot_be_are_refused(card: Card, label: bytes) -> None:
    session = CardSession.open(card.connect())
    session.verify_pin(PinReference.OPERATOR, PINS.operator)
    with pytest.raises(StatusWordError, match="6A80"):
        commands.add_identity(session.channel, label)


def test_identities_are_bounded(card: Card) -> None:
    session = CardSession.open(card.connect())
    session.verify_pin(PinReference.OPERATOR, PINS.operator)
    for number in range(7):
        commands.add_identity(session.channel, b"more %d" % number)
    with pytest.raises(StatusWordError, match="6A84"):
        commands.add_identity(session.channel, b"one too many")


@pytest.mark.parametrize(
    ("ins", "p2", "data", "status"),
    [
        (Instruction.GENERATE_KEY, 0x7F, b"", "6A81"),
        (Instruction.PUT_DATA, 0x09, b"\x00", "6B00"),
        (Instruction.PUT_DATA, 0x04, b"s\xfcd", "6A80"),
        (Instruction.CERTIFICATE_REQUEST, 0x00, b"\x80", "6A80"),
        (Instruction.CERTIFICATE_REQUEST, 0x00, bytes.fromhex("81 00"), "6A80"),
        (Instruction.CERTIFICATE_REQUEST, 0x00, bytes.fromhex("80 04 43 4E 3D 61 82 01 00"), "6A80"),
        (Instruction.IDENTITIES, 0x55, b"", "6B00"),
    ],
)
def test_senseless_personalisation(card: Card, ins: Instruction, p2: int, data: bytes, status: str) -> None:
    session = CardSession.open(card.connect())
    session.verify_pin(PinReference.OPERATOR, PINS.operator)
    with pytest.raises(StatusWordError, match=status):
        session.channel.send(CommandApdu(0xA0, ins, 0x00, p2, data))


def test_private_key_and_pins_are_in_no_file(card: Card, tmp_path: Path) -> None:
    secret = client_identity().key_der
    for file in tmp_path.rglob("*"):
        if file.is_file():
            octets = file.read_bytes()
            assert secret not in octets
            assert PINS.operator.reveal() not in octets


def test_backend_is_found_by_its_scheme(tmp_path: Path) -> None:
    settings = BackendSettings(tmp_path, SEALING_KEY)
    assert isinstance(backend_for("soft", settings), SoftwareBackend)
    with pytest.raises(InvalidRequest, match="soft:NAME"):
        backend_for("floppy", settings)


@pytest.mark.parametrize(
    ("apdus", "to_extended", "to_le_behind_data"),
    [("short", 0x67, 0x90), ("extended", 0x90, 0x90), ("t0", 0x67, 0x67)],
)
def test_an_element_takes_the_apdus_that_were_asked_for(
    tmp_path: Path,
    apdus: Literal["short", "extended", "t0"],
    to_extended: int,
    to_le_behind_data: int,
) -> None:
    backend = backend_for("soft", BackendSettings(tmp_path, SEALING_KEY, apdus=apdus))
    assert isinstance(backend, SoftwareBackend)
    backend.create(NAME, PINS)
    connection = backend.connect(NAME)
    select = bytes.fromhex("00 A4 04 00")
    assert connection.transmit(select + b"\x00\x00\x10" + AID + b"\x00\x00")[-2] == to_extended
    assert connection.transmit(select + b"\x10" + AID + b"\x00")[-2] == to_le_behind_data


def test_elements_are_made_once_and_destroyed(backend: SoftwareBackend) -> None:
    with pytest.raises(AlreadyExists):
        backend.create(NAME, PINS)
    backend.delete(NAME)
    for use in (backend.connect, backend.delete):
        with pytest.raises(TokenNotFound):
            use(NAME)
    backend.create(NAME, PINS)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "UPPER", "x" * 64, "a b"])
def test_names_stay_inside_the_directory(backend: SoftwareBackend, name: str) -> None:
    for use in (
        lambda: backend.create(name, PINS),
        lambda: backend.delete(name),
        lambda: backend.connect(name),
    ):
        with pytest.raises(InvalidRequest, match="cannot have the name"):
            use()


def test_issuer_needs_the_operator_pin(backend: SoftwareBackend) -> None:
    with pytest.raises(PinMissing):
        backend.open_issuer(NAME, None)


def test_closed_issuer_is_closed(issuer: EapTlsIssuer) -> None:
    issuer.close()
    issuer.close()
    with pytest.raises(TokenUnavailable):
        issuer.public_key()


def test_trust_anchors_of_servers_are_kept(card: Card) -> None:
    session = CardSession.open(card.connect())
    session.verify_pin(PinReference.USER, PINS.user)
    data = commands.profile_data(session.channel)
    assert data.anchors == (server_identity().root_der,)
    assert data.identity == NAME.encode()


def test_destroyed_element_does_not_come_back(backend: SoftwareBackend) -> None:
    element = backend.connect(NAME)
    backend.delete(NAME)
    element.transmit(bytes.fromhex("00 A4 04 00 10") + AID)
    assert element.transmit(bytes.fromhex("A0 20 00 00 04 31 32 33 34")) == b"\x65\x81"
    with pytest.raises(TokenNotFound):
        backend.connect(NAME)
