"""PivCard and PivIssuer against the software element."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from dom0_broker.backends.software.backend import SoftwareBackend
from tests.support.piv import PivHolder, personalised, piv_backend
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_codes import Slot
from vmtoken.secret import SecretBytes
from vmtoken.tls.signatures import PublicKey
from vmtoken.token import Assurance

CONTENT = b"a transcript"
WRONG = SecretBytes(b"000000")


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
