"""Other PKCS#11 modules than SoftHSM: PIV cards through OpenSC and pcscd, a TPM 2.0 through tpm2-pkcs11."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509

from dom0_broker.backends.base import Kept
from tests.support.memory import python_context
from tests.support.piv import SECRETS, PivHolder, piv_backend
from tests.support.piv import personalised as personalised_card
from tests.support.pkcs11 import (
    PIN,
    WRONG_PIN,
    YUBIKEY_4_ATR,
    Pkcs11Token,
    opensc,
    opensc_locator,
    personalised,
    tpm,
)
from tests.support.pki import KeyKind, server_identity
from tests.support.token_sessions import connect, talk
from tests.support.waiting import wait_until
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.piv_codes import Slot
from vmtoken.errors import Conflict, PinBlocked, PinRejected, TokenUnavailable
from vmtoken.secret import SecretBytes
from vmtoken.token import Assurance, HandshakeToken

pytestmark = pytest.mark.pkcs11


def card(directory: Path, kind: KeyKind = KeyKind.ECDSA_P256, slot: Slot = Slot.AUTHENTICATION) -> PivHolder:
    return personalised_card(piv_backend(directory), kind, slot)


def opened(token: Pkcs11Token, holder: PivHolder) -> HandshakeToken:
    kept = Kept(holder.identity.chain_der, (server_identity().root_der,))
    return token.backend.open(opensc_locator(token, holder.identity), SECRETS.pin, kept)


def handshake(token: HandshakeToken) -> None:
    with tempfile.TemporaryDirectory() as directory:
        talk(connect(token, python_context(Path(directory))))


# PIV cards through OpenSC ---------------------------------------------------------------------------------


def test_card_behind_opensc_is_hardware_and_shows_what_it_can(tmp_path: Path) -> None:
    holder = card(tmp_path / "elements")
    with opensc(tmp_path, holder) as (token, _):
        locator = opensc_locator(token, holder.identity)
        (found,) = (each for each in token.backend.discover() if each.certificate)
        assert found.uri == f"pkcs11:{locator}"
        assert "ECDSA_SECP256R1_SHA256" in found.capabilities
        with closing(opened(token, holder)) as engine:
            assert engine.describe().assurance is Assurance.CARD_SIGNATURE
            handshake(engine)


def test_flags_of_the_card_keep_its_last_try(tmp_path: Path) -> None:
    """Of three tries two are lost, the last is not; OpenSC tells of that one alone."""
    holder = card(tmp_path / "elements")
    with opensc(tmp_path, holder) as (token, _):
        locator = opensc_locator(token, holder.identity)
        for wrong, told in ((b"111111", "does not tell"), (b"222222", "one try is left")):
            with pytest.raises(PinRejected, match=told):
                token.backend.open(locator, SecretBytes(wrong))
        assert token.backend.pin_state(locator).tries_left == 1
        for pin in (b"333333", SECRETS.pin.reveal()):
            with pytest.raises(PinBlocked, match="too few to risk"):
                token.backend.open(locator, SecretBytes(pin))
        assert token.backend.pin_state(locator).tries_left == 1
        without_reserve = token.new_backend(pin_reserve=0)
        without_reserve.open(locator, SECRETS.pin, Kept(holder.identity.chain_der)).close()
        assert token.backend.pin_state(locator).tries_left is None


def test_card_that_is_pulled_is_told_and_comes_back(tmp_path: Path) -> None:
    """The other card behind the same module is not disturbed."""
    pulled, other = card(tmp_path / "a"), card(tmp_path / "b")
    with (
        opensc(tmp_path, pulled, other) as (token, readers),
        closing(opened(token, pulled)) as mine,
        closing(opened(token, other)) as theirs,
    ):
        locator = opensc_locator(token, other.identity)
        pid = token.backend.module_of(locator).pid
        readers[0].card.remove()
        wait_until(lambda: pulled.identity.chain_der[0] not in certificates(token))
        with pytest.raises(TokenUnavailable):
            handshake(mine)
        handshake(theirs)
        with readers[0].reader.holding(pulled.connect(), YUBIKEY_4_ATR):
            with closing(opened(token, pulled)) as again:
                handshake(again)
            handshake(theirs)
        assert token.backend.module_of(locator).pid == pid


def test_card_in_the_reader_of_one_that_was_open_is_opened_anew(tmp_path: Path) -> None:
    """Also the same one again: its login went with it, though nobody asked in between."""
    first, second = card(tmp_path / "a"), card(tmp_path / "b")
    with opensc(tmp_path, first) as (token, readers), closing(opened(token, first)):
        readers[0].card.remove()
        for holder in (second, first):
            with (
                readers[0].reader.holding(holder.connect(), YUBIKEY_4_ATR),
                closing(opened(token, holder)) as engine,
            ):
                handshake(engine)


def certificates(token: Pkcs11Token) -> list[bytes]:
    return [found.certificate for found in token.backend.discover()]


# TPM 2.0 ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tpm_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pkcs11Token]:
    with tpm(tmp_path_factory.mktemp("tpm")) as token:
        yield token


@pytest.mark.parametrize(
    "algorithm",
    [KeyAlgorithm.ECDSA_P256, KeyAlgorithm.ECDSA_P384, KeyAlgorithm.RSA_2048],
    ids=lambda a: a.name,
)
def test_key_is_made_in_a_tpm(tpm_token: Pkcs11Token, algorithm: KeyAlgorithm) -> None:
    locator = tpm_token.locator(algorithm.name)
    with closing(tpm_token.backend.open_issuer(locator, None, SecretBytes(PIN))) as issuer:
        issuer.generate_key(algorithm)
        request = x509.load_der_x509_csr(issuer.certificate_request("CN=web01"))
    assert request.is_signature_valid


def test_tpm_runs_a_handshake_and_keeps_the_certificate(tpm_token: Pkcs11Token) -> None:
    """tpm2-pkcs11 says CKF_HW_SLOT of each TPM, and cannot know that this one is a program."""
    holder = personalised(tpm_token, name="shakes")
    with closing(holder.token()) as token:
        assert token.describe().assurance is Assurance.CARD_SIGNATURE
        handshake(token)
    with closing(tpm_token.backend.open_key(holder.locator, SecretBytes(PIN))) as key:
        assert tuple(key.certificate_chain) == holder.identity.chain_der[:1]


def test_key_is_gone_from_the_tpm(tpm_token: Pkcs11Token) -> None:
    holder = personalised(tpm_token, name="doomed")
    with closing(tpm_token.backend.open_issuer(holder.locator, None, SecretBytes(PIN))) as issuer:
        issuer.destroy_key()
        with pytest.raises(Conflict, match="no key"):
            issuer.public_key()


def test_tpm_makes_no_ed25519_key(tpm_token: Pkcs11Token) -> None:
    with (
        closing(tpm_token.backend.open_issuer(tpm_token.locator("ed"), None, SecretBytes(PIN))) as issuer,
        pytest.raises(Conflict, match="makes no ED25519 keys"),
    ):
        issuer.generate_key(KeyAlgorithm.ED25519)


def test_wrong_pin_of_a_tpm_is_refused_and_the_right_one_taken(tpm_token: Pkcs11Token) -> None:
    holder = personalised(tpm_token, name="guarded")
    with pytest.raises(PinRejected):
        tpm_token.backend.open(holder.locator, SecretBytes(WRONG_PIN))
    holder.token().close()
