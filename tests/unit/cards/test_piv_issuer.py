"""PivIssuer against the software element; OpenSSL judges its requests."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.piv_store import PivSecrets
from tests.support.cards import NAME
from tests.support.piv import (
    SECRETS,
    PivHolder,
    certified,
    management_key,
    personalised,
    piv_backend,
    piv_issuer,
)
from tests.support.pki import client_identity, server_identity
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_codes import KEY_ALGORITHMS, Algorithm, Slot
from vmtoken.cards.piv_issuer import PivIssuer
from vmtoken.errors import Conflict, InvalidRequest, PinMissing, PinRejected, TokenUnavailable
from vmtoken.iso7816.connection import CardConnection
from vmtoken.secret import SecretBytes

NAMES = ("web01.example",)


@pytest.fixture
def backend(tmp_path: Path) -> SoftwareBackend:
    return piv_backend(tmp_path)


@pytest.fixture
def holder(backend: SoftwareBackend) -> PivHolder:
    return personalised(backend)


@pytest.mark.parametrize("slot", [Slot.AUTHENTICATION, Slot.SIGNATURE, Slot.CARD_AUTHENTICATION], ids=str)
@pytest.mark.parametrize("algorithm", KEY_ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_key_is_made_on_the_card_and_signs_its_own_request(
    backend: SoftwareBackend, algorithm: KeyAlgorithm, slot: Slot
) -> None:
    issuer = piv_issuer(backend, slot)
    info = issuer.generate_key(algorithm)
    issuer.close()
    issuer = piv_issuer(backend, slot)
    assert issuer.public_key() == info
    request = issuer.certificate_request("CN=web01,O=Example", NAMES)
    issuer.close()
    done = subprocess.run(
        ["openssl", "req", "-inform", "DER", "-noout", "-verify"],
        input=request,
        capture_output=True,
        check=True,
    )
    assert b"OK" in done.stderr
    read = x509.load_der_x509_csr(request)
    assert read.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == info
    assert read.subject.rfc4514_string() == "CN=web01,O=Example"


def test_algorithm_that_piv_does_not_have_is_refused(backend: SoftwareBackend) -> None:
    issuer = piv_issuer(backend)
    for algorithm in set(KeyAlgorithm) - set(KEY_ALGORITHMS):
        with pytest.raises(Conflict, match=f"no {algorithm.name} keys"):
            issuer.generate_key(algorithm)


def test_nothing_is_told_of_a_key_that_is_not_there(backend: SoftwareBackend) -> None:
    issuer = piv_issuer(backend)
    with pytest.raises(Conflict, match="generate a key first"):
        issuer.public_key()
    with pytest.raises(Conflict, match="generate a key first"):
        issuer.certificate_request("CN=web01")
    with pytest.raises(Conflict, match="another key"):
        issuer.install_certificate_chain(client_identity().chain_der)


@pytest.mark.parametrize(
    ("chain", "meaning"),
    [
        (client_identity().chain_der, "another key"),
        ((), "does not parse"),
        ((b"no certificate",), "does not parse"),
    ],
    ids=["another key", "nothing", "no certificate"],
)
def test_wrong_certificate_is_refused_and_the_old_one_stays(
    holder: PivHolder, chain: tuple[bytes, ...], meaning: str
) -> None:
    issuer = holder.issuer()
    with pytest.raises(Conflict, match=meaning):
        issuer.install_certificate_chain(chain)
    issuer.close()
    assert PivCard(holder.connect(), SECRETS.pin).certificate_chain == holder.identity.chain_der[:1]


def test_chain_out_of_order_is_refused(holder: PivHolder) -> None:
    leaf, *others = holder.identity.chain_der
    with pytest.raises(Conflict, match="out of order"):
        holder.issuer().install_certificate_chain([leaf, client_identity().chain_der[0], *others])


def test_certificate_of_another_key_in_the_slot_does_not_help_a_wrong_one(holder: PivHolder) -> None:
    """The key itself is asked, not the certificate that is there."""
    issuer = holder.issuer()
    issuer._put_certificate(client_identity().chain_der[0])
    with pytest.raises(Conflict, match="another key"):
        issuer.install_certificate_chain(client_identity().chain_der)
    with pytest.raises(Conflict, match="belongs to another key"):
        issuer.certificate_request("CN=web01")
    issuer.install_certificate_chain(holder.identity.chain_der)
    issuer.certificate_request("CN=web01")


def test_subject_must_be_a_name(holder: PivHolder) -> None:
    issuer = holder.issuer()
    with pytest.raises(InvalidRequest, match="correct the names"):
        issuer.certificate_request("web01")
    with pytest.raises(InvalidRequest, match="DNS name"):
        issuer.certificate_request("CN=web01", ["münchen.example"])


def test_certificate_that_is_too_long_is_refused_and_the_old_one_stays(backend: SoftwareBackend) -> None:
    issuer = piv_issuer(backend)
    info = issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    good = certified(info)
    issuer.install_certificate_chain(good.chain_der)
    names = [f"{hashlib.sha224(bytes((i,))).hexdigest()}.example" for i in range(256)]
    with pytest.raises(Conflict, match="no room"):
        issuer.install_certificate_chain(certified(info, dns_names=names).chain_der)
    issuer.close()
    assert PivCard(backend.connect(NAME), SECRETS.pin).certificate_chain == good.chain_der[:1]


def test_signatures_need_the_user_pin_before_a_key_is_replaced(holder: PivHolder) -> None:
    issuer = PivIssuer(holder.connect(), management_key())
    with pytest.raises(PinMissing):
        issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    issuer.close()
    assert holder.issuer().certificate_request("CN=web01")


def test_card_of_somebody_else_is_used_for_what_it_holds(holder: PivHolder) -> None:
    """Without the management key: requests, chain and anchors, but nothing on the card changes."""
    before = PivCard(holder.connect(), SECRETS.pin).certificate_chain
    issuer = PivIssuer(holder.connect(), None, SECRETS.pin)
    assert x509.load_der_x509_csr(issuer.certificate_request("CN=web01")).is_signature_valid
    renewed = certified(issuer.public_key())
    issuer.install_certificate_chain(renewed.chain_der)
    issuer.install_trust_anchors([server_identity().root_der])
    with pytest.raises(Conflict, match="another key"):
        issuer.install_certificate_chain(client_identity().chain_der)
    for change in (lambda: issuer.generate_key(KeyAlgorithm.ECDSA_P256), issuer.destroy_key):
        with pytest.raises(PinMissing, match="management key"):
            change()
    issuer.close()
    assert PivCard(holder.connect(), SECRETS.pin).certificate_chain == before
    kept = PivCard(holder.connect(), SECRETS.pin, kept_chain=renewed.chain_der)
    assert kept.certificate_chain == renewed.chain_der


def test_stale_certificate_on_the_card_is_not_covered_up(holder: PivHolder) -> None:
    issuer = holder.issuer()
    issuer._put_certificate(client_identity().chain_der[0])
    issuer.close()
    issuer = PivIssuer(holder.connect(), None, SECRETS.pin)
    with pytest.raises(PinMissing, match="management key"):
        issuer.install_certificate_chain(holder.identity.chain_der)


def test_broker_keeps_chain_and_anchors(holder: PivHolder) -> None:
    issuer = holder.issuer()
    assert not issuer.keeps_certificates
    issuer.install_trust_anchors([server_identity().root_der])
    for anchors in ([], [b"no certificate"]):
        with pytest.raises(Conflict, match="trust anchors"):
            issuer.install_trust_anchors(anchors)


def test_destroyed_key_signs_no_more(holder: PivHolder) -> None:
    issuer = holder.issuer()
    issuer.destroy_key()
    issuer.close()
    issuer = holder.issuer()
    with pytest.raises(Conflict, match="another key"):
        issuer.install_certificate_chain(holder.identity.chain_der)
    assert not PivCard(holder.connect(), SECRETS.pin).certificate_chain


@pytest.mark.parametrize(
    ("algorithm", "length"),
    [(Algorithm.TRIPLE_DES, 24), (Algorithm.AES_128, 16), (Algorithm.AES_192, 24), (Algorithm.AES_256, 32)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_management_key_may_be_of_any_algorithm(tmp_path: Path, algorithm: Algorithm, length: int) -> None:
    owner = PivSecrets(SECRETS.pin, SECRETS.puk, SecretBytes(bytes(range(length))), algorithm)
    backend = piv_backend(tmp_path, owner)
    issuer = piv_issuer(backend, owner=owner)
    issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    issuer.close()
    with pytest.raises(PinRejected, match="refused the management key"):
        PivIssuer(backend.connect(NAME), SecretBytes(b"ff" * length))


def test_management_key_must_be_given_in_hexadecimal_digits(backend: SoftwareBackend) -> None:
    for digits in (b"", b"00", b"zz" * 16, bytes(range(32)), b"\xff" * 32, b"00" * 23):
        with pytest.raises(InvalidRequest, match="hexadecimal"):
            PivIssuer(backend.connect(NAME), SecretBytes(digits))
    with pytest.raises(PinRejected, match="another kind"):
        PivIssuer(backend.connect(NAME), SecretBytes(b"00" * 24))


class Impostor:
    """Lets everything pass but the proof that the card knows its management key."""

    def __init__(self, card: CardConnection) -> None:
        self._card = card
        self.close, self.reset = card.close, card.reset

    def transmit(self, command: bytes) -> bytes:
        answer = self._card.transmit(command)
        return answer[:4] + bytes(len(answer) - 6) + answer[-2:] if answer[2:3] == b"\x82" else answer


def test_card_that_does_not_know_the_management_key_is_found_out(backend: SoftwareBackend) -> None:
    with pytest.raises(TokenUnavailable, match="management key"):
        PivIssuer(Impostor(backend.connect(NAME)), management_key())
