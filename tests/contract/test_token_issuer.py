"""What every `TokenIssuer` does: keys made inside, only certificates of its own key, an end for good."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key

from dom0_broker.backends.base import NOTHING_KEPT, TokenIssuer
from dom0_broker.backends.software.backend import SoftwareBackend
from tests.support.cards import NAME, PINS, SEALING_KEY
from tests.support.piv import SECRETS, certified, piv_backend, piv_issuer
from tests.support.pkcs11 import softhsm
from tests.support.pki import client_identity, server_identity
from tests.support.sentences import is_sentence
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.piv import PivCard
from vmtoken.errors import Conflict, TokenNotReady, VmTokenError
from vmtoken.secret import SecretBytes


@dataclass(frozen=True)
class Place:
    """Something that can be personalised."""

    issuer: Callable[[], TokenIssuer]
    chain: Callable[[], Sequence[bytes]]
    """What it shows to whoever opens it as a token; empty without a certificate."""

    makes_ml_dsa: bool


@contextlib.contextmanager
def software(directory: Path) -> Iterator[Place]:
    backend = SoftwareBackend(directory, SEALING_KEY)
    backend.create(NAME, PINS)

    def chain() -> Sequence[bytes]:
        with contextlib.closing(backend.open(NAME, PINS.user)) as token:
            return token.describe().certificate_chain

    yield Place(lambda: backend.open_issuer(NAME, PINS.operator), chain, makes_ml_dsa=True)


@contextlib.contextmanager
def piv(directory: Path) -> Iterator[Place]:
    backend = piv_backend(directory)

    def chain() -> Sequence[bytes]:
        try:
            with contextlib.closing(PivCard(backend.connect(NAME), SECRETS.pin)) as key:
                return key.certificate_chain
        except TokenNotReady:
            return ()

    yield Place(lambda: piv_issuer(backend), chain, makes_ml_dsa=False)


@contextlib.contextmanager
def pkcs11(directory: Path) -> Iterator[Place]:
    with softhsm(directory) as token:
        backend, pin = token.backend, SecretBytes(token.pin)

        def chain() -> Sequence[bytes]:
            try:
                with contextlib.closing(backend.open_key(token.locator(), pin, NOTHING_KEPT)) as key:
                    return key.certificate_chain
            except TokenNotReady:
                return ()

        yield Place(lambda: backend.open_issuer(token.locator(), None, pin), chain, makes_ml_dsa=False)


@pytest.fixture(params=[software, piv, pkcs11], ids=lambda place: place.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with request.param(tmp_path) as place:
        assert isinstance(place, Place)
        yield place


@pytest.fixture
def issuer(place: Place) -> Iterator[TokenIssuer]:
    with contextlib.closing(place.issuer()) as issuer:
        yield issuer


def test_request_is_signed_by_the_key_that_was_made(issuer: TokenIssuer) -> None:
    info = issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    request = x509.load_der_x509_csr(issuer.certificate_request("CN=web01", ("web01.example",)))
    assert request.is_signature_valid
    assert request.public_key() == load_der_public_key(info)
    assert issuer.public_key() == info


def test_certificate_of_another_key_is_refused_and_the_old_one_stays(
    place: Place, issuer: TokenIssuer
) -> None:
    ours = certified(issuer.generate_key(KeyAlgorithm.ECDSA_P256)).chain_der
    issuer.install_certificate_chain(ours)
    with pytest.raises(Conflict, match="another key"):
        issuer.install_certificate_chain(client_identity().chain_der)
    issuer.close()
    assert place.chain()[0] == ours[0]


def test_another_certificate_of_the_same_key_takes_its_place(place: Place, issuer: TokenIssuer) -> None:
    info = issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    first, second = certified(info).chain_der, certified(info).chain_der
    for chain in (first, second):
        issuer.install_certificate_chain(chain)
    issuer.close()
    assert place.chain()[0] == second[0]


def test_new_key_has_no_certificate(place: Place, issuer: TokenIssuer) -> None:
    issuer.install_certificate_chain(certified(issuer.generate_key(KeyAlgorithm.ECDSA_P256)).chain_der)
    issuer.generate_key(KeyAlgorithm.ECDSA_P384)
    issuer.close()
    assert not place.chain()


def test_destroyed_key_is_gone_for_good(place: Place, issuer: TokenIssuer) -> None:
    ours = certified(issuer.generate_key(KeyAlgorithm.ECDSA_P256)).chain_der
    issuer.install_certificate_chain(ours)
    issuer.destroy_key()
    with pytest.raises(VmTokenError):
        issuer.install_certificate_chain(ours)
    issuer.close()
    assert not place.chain()


def test_what_is_no_certificate_is_refused(issuer: TokenIssuer) -> None:
    issuer.generate_key(KeyAlgorithm.ECDSA_P256)
    for install in (issuer.install_certificate_chain, issuer.install_trust_anchors):
        with pytest.raises(VmTokenError):
            install([b"nonsense"])
    issuer.install_trust_anchors([server_identity().root_der])


def test_post_quantum_key_is_made_or_refused_in_a_sentence(place: Place, issuer: TokenIssuer) -> None:
    if place.makes_ml_dsa:
        assert issuer.generate_key(KeyAlgorithm.ML_DSA_65) == issuer.public_key()
        return
    with pytest.raises(Conflict, match=r"makes? no ML_DSA_65 keys; choose another algorithm") as refusal:
        issuer.generate_key(KeyAlgorithm.ML_DSA_65)
    assert is_sentence(refusal.value.message)
