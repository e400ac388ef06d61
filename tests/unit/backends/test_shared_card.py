"""Keys of one PIV card are tokens of their own, with one PIN and one counter between them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from dom0_broker.backends.base import Kept
from dom0_broker.backends.pcsc.applications import KeyInTurn, PivUse
from dom0_broker.backends.software.backend import SoftwareBackend
from tests.fakes.reader import FakeReader
from tests.support.piv import NAME, SECRETS, management_key, personalised, piv_backend
from vmtoken.cards import piv_pins
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_codes import Slot
from vmtoken.errors import PinRejected, TokenUnavailable
from vmtoken.secret import SecretBytes

NEW = SecretBytes(b"111222")
SLOTS = (Slot.AUTHENTICATION, Slot.SIGNATURE)


@pytest.fixture
def backend(tmp_path: Path) -> SoftwareBackend:
    backend = piv_backend(tmp_path)
    for slot in SLOTS:
        personalised(backend, slot=slot)
    return backend


@pytest.fixture
def reader(backend: SoftwareBackend) -> FakeReader:
    return FakeReader(lambda: backend.connect(NAME))


def tries_left(backend: SoftwareBackend) -> int | None:
    return piv_pins.user_pin_tries_left(backend.connect(NAME))


def key(reader: FakeReader, slot: Slot) -> KeyInTurn:
    card = reader.borrow()
    made = PivCard(card, SECRETS.pin, slot=slot)
    card.release()
    return KeyInTurn(made, card)


@pytest.mark.parametrize("first", SLOTS)
def test_pin_that_one_key_was_refused_is_not_given_for_another(
    backend: SoftwareBackend, reader: FakeReader, first: Slot
) -> None:
    keys = {slot: key(reader, slot) for slot in SLOTS}
    piv_pins.change_user_pin(backend.connect(NAME), SECRETS.pin, NEW)  # by somebody else
    assert reader._element is not None
    reader._element.reset()
    with pytest.raises(PinRejected):
        keys[first].sign(keys[first].schemes[0], b"transcript")
    for other in SLOTS:
        with pytest.raises(TokenUnavailable):
            keys[other].sign(keys[other].schemes[0], b"transcript")
    assert tries_left(backend) == 2


def test_pin_that_is_refused_at_the_opening_of_one_key_is_not_given_for_another(
    backend: SoftwareBackend, reader: FakeReader
) -> None:
    signs = key(reader, Slot.SIGNATURE)
    piv_pins.change_user_pin(backend.connect(NAME), SECRETS.pin, NEW)
    assert reader._element is not None
    reader._element.reset()
    with pytest.raises(PinRejected):
        PivUse(reader.borrow(), 1, Slot.AUTHENTICATION).token(SECRETS.pin, Kept())
    with pytest.raises(TokenUnavailable):
        signs.sign(signs.schemes[0], b"transcript")
    assert tries_left(backend) == 2


def test_pin_that_is_refused_in_personalisation_is_not_given_for_another(
    backend: SoftwareBackend, reader: FakeReader
) -> None:
    signs = key(reader, Slot.SIGNATURE)
    piv_pins.change_user_pin(backend.connect(NAME), SECRETS.pin, NEW)
    assert reader._element is not None
    reader._element.reset()
    use = PivUse(reader.borrow(), 1, Slot.AUTHENTICATION)
    with closing(use.issuer(management_key(), SECRETS.pin)) as issuer, pytest.raises(PinRejected):
        issuer.certificate_request("CN=web01")
    with pytest.raises(TokenUnavailable):
        signs.sign(signs.schemes[0], b"transcript")
    assert tries_left(backend) == 2
