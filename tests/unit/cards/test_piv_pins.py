"""PIN and PUK of a PIV card, as the operator changes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dom0_broker.backends.software.backend import SoftwareBackend
from tests.support.cards import NAME
from tests.support.piv import SECRETS, piv_backend
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_pins import change_user_pin, unblock_user_pin, user_pin_tries_left
from vmtoken.errors import Conflict, InvalidRequest, PinBlocked, PinRejected
from vmtoken.secret import SecretBytes

NEW, WRONG = SecretBytes(b"112233"), SecretBytes(b"000000")


@pytest.fixture
def backend(tmp_path: Path) -> SoftwareBackend:
    return piv_backend(tmp_path)


def tries_left(backend: SoftwareBackend) -> int | None:
    return user_pin_tries_left(backend.connect(NAME))


def test_asking_spends_nothing(backend: SoftwareBackend) -> None:
    assert [tries_left(backend) for _ in range(5)] == [3] * 5


def test_pin_is_changed_with_the_old_one(backend: SoftwareBackend) -> None:
    change_user_pin(backend.connect(NAME), SECRETS.pin, NEW)
    PivCard(backend.connect(NAME), NEW).close()
    with pytest.raises(PinRejected) as caught:
        change_user_pin(backend.connect(NAME), SECRETS.pin, NEW)
    assert caught.value.retries_left == 2


def test_last_try_is_never_spent_on_a_change(backend: SoftwareBackend) -> None:
    for _ in range(2):
        with pytest.raises(PinRejected):
            change_user_pin(backend.connect(NAME), WRONG, NEW)
    with pytest.raises(PinBlocked, match="only 1 try left"):
        change_user_pin(backend.connect(NAME), SECRETS.pin, NEW)
    assert tries_left(backend) == 1


def test_puk_unblocks_the_pin(backend: SoftwareBackend) -> None:
    for _ in range(2):
        with pytest.raises(PinRejected):
            change_user_pin(backend.connect(NAME), WRONG, NEW)
    with pytest.raises(PinBlocked):
        change_user_pin(backend.connect(NAME), WRONG, NEW, pin_reserve=0)
    assert tries_left(backend) == 0
    with pytest.raises(PinBlocked, match="blocked; unblock it with the PUK"):
        PivCard(backend.connect(NAME), SECRETS.pin)
    unblock_user_pin(backend.connect(NAME), SECRETS.puk, NEW)
    assert tries_left(backend) == 3
    PivCard(backend.connect(NAME), NEW).close()


def test_wrong_puk_costs_one_of_its_own_tries(backend: SoftwareBackend) -> None:
    with pytest.raises(PinRejected) as caught:
        unblock_user_pin(backend.connect(NAME), WRONG, NEW)
    assert caught.value.retries_left == 2
    assert tries_left(backend) == 3


@pytest.mark.parametrize("new", [b"", b"12345", b"123456789", b"12 456", b"123\xff56"])
def test_new_pin_that_is_none_never_reaches_the_card(backend: SoftwareBackend, new: bytes) -> None:
    with pytest.raises(InvalidRequest, match="6 to 8 digits"):
        change_user_pin(backend.connect(NAME), WRONG, SecretBytes(new))
    with pytest.raises(InvalidRequest, match="6 to 8 digits"):
        unblock_user_pin(backend.connect(NAME), WRONG, SecretBytes(new))
    assert tries_left(backend) == 3


def test_new_pin_that_the_card_does_not_like_is_told(backend: SoftwareBackend) -> None:
    with pytest.raises(Conflict, match="6 to 8 digits"):
        change_user_pin(backend.connect(NAME), SECRETS.pin, SecretBytes(b"abcdef"))
    assert tries_left(backend) == 3
