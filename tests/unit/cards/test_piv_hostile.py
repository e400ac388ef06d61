"""PIV drivers against cards that answer anything: a typed error, and no PIN is spent twice."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.card import RecordingCard
from tests.support.piv import SECRETS, PivHolder, certified, management_key, personalised, piv_backend
from vmtoken.cards import piv_pins
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_codes import Slot
from vmtoken.cards.piv_issuer import PivIssuer
from vmtoken.errors import VmTokenError
from vmtoken.iso7816.connection import CardConnection
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import SignatureScheme


class Babbler:
    """Answers what it is told to, round and round."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self._count = 0

    def transmit(self, command: bytes) -> bytes:
        self._count += 1
        return self._answers[self._count % len(self._answers)]

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


class Liar:
    """A card whose n-th answer, and no other, is changed on its way."""

    def __init__(self, card: CardConnection, number: int, change: Callable[[bytes], bytes]) -> None:
        self._card = card
        self._number = number
        self._change = change

    def transmit(self, command: bytes) -> bytes:
        self._number -= 1
        answer = self._card.transmit(command)
        return self._change(answer) if self._number == -1 else answer

    def reset(self) -> None:
        self._card.reset()

    def close(self) -> None:
        self._card.close()


@pytest.fixture(scope="module", autouse=True)
def element(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One card for all: hypothesis and tables call it by `holder`."""
    backend = piv_backend(tmp_path_factory.mktemp("element"))
    _HOLDERS.extend(personalised(backend, slot=slot) for slot in (Slot.AUTHENTICATION, Slot.SIGNATURE))
    yield
    _HOLDERS.clear()


_HOLDERS: list[PivHolder] = []


def holder(slot: Slot = Slot.AUTHENTICATION) -> PivHolder:
    return next(one for one in _HOLDERS if one.slot is slot)


def use_key(connection: CardConnection, slot: Slot = Slot.AUTHENTICATION) -> None:
    card = PivCard(connection, SECRETS.pin, slot=slot, kept_chain=holder(slot).identity.chain_der)
    card.sign(SignatureScheme.ECDSA_SECP256R1_SHA256, b"content")


def issue(connection: CardConnection) -> None:
    issuer = PivIssuer(connection, management_key(), SECRETS.pin)
    issuer.certificate_request("CN=web01")
    issuer.install_certificate_chain(holder().identity.chain_der)


def generate(connection: CardConnection) -> None:
    issuer = PivIssuer(connection, management_key(), SECRETS.pin, slot=Slot.RETIRED_1)
    issuer.install_certificate_chain(certified(issuer.generate_key(KeyAlgorithm.ECDSA_P256)).chain_der)


def change_pin(connection: CardConnection) -> None:
    piv_pins.change_user_pin(connection, SECRETS.pin, SECRETS.pin)


def unblock(connection: CardConnection) -> None:
    piv_pins.unblock_user_pin(connection, SECRETS.puk, SECRETS.pin)


def ask(connection: CardConnection) -> None:
    piv_pins.user_pin_tries_left(connection)


USES = (use_key, functools.partial(use_key, slot=Slot.SIGNATURE), issue, generate, change_pin, unblock, ask)

STATUS = st.sampled_from(
    [
        "9000",
        "6100",
        "6110",
        "6C10",
        "6C00",
        "63C0",
        "63C1",
        "63CF",
        "6982",
        "6983",
        "6985",
        "6A80",
        "6A82",
        "6D00",
    ]
).map(bytes.fromhex)
FRAGMENTS = st.sampled_from(
    [
        "5300",
        "7C00",
        "7C028200",
        "7C048202FFFF",
        "6100",
        "53027000",
        "5303710101",
        "7F4900",
        "53",
        "FF",
        "7C0A8208",
    ]
).map(bytes.fromhex)
ANSWERS = st.builds(
    lambda data, status: data + status, st.one_of(FRAGMENTS, st.binary(max_size=30)), STATUS
) | st.binary(max_size=40)


@settings(deadline=None, max_examples=300)
@given(st.lists(ANSWERS, min_size=1, max_size=6), st.sampled_from(USES))
def test_any_answers_end_in_a_typed_error(
    answers: list[bytes], use: Callable[[CardConnection], None]
) -> None:
    with contextlib.suppress(VmTokenError):
        use(Babbler(answers))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda answer: b"",
    "one octet": lambda answer: answer[:1],
    "only the status word": lambda answer: answer[-2:],
    "cut": lambda answer: answer[: len(answer) // 2] + answer[-2:],
    "longer": lambda answer: answer[:-2] + b"\x00" + answer[-2:],
    "a bit": lambda answer: bytes((answer[0] ^ 1,)) + answer[1:],
    "another bit": lambda answer: (
        answer[:-3] + bytes((answer[-3] ^ 0x80,)) + answer[-2:] if answer[2:] else answer
    ),
    "6982": lambda answer: b"\x69\x82",
    "6A82": lambda answer: b"\x6a\x82",
    "63C2": lambda answer: b"\x63\xc2",
    "6F00": lambda answer: b"\x6f\x00",
    "6110": lambda answer: b"\x61\x10",
}


@pytest.mark.parametrize("use", USES, ids=lambda use: getattr(use, "__name__", "use_key in 9C"))
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_single_lie_is_survived(
    use: Callable[[CardConnection], None], change: Callable[[bytes], bytes]
) -> None:
    """And the right PIN, given again after a lie, never costs a try of the real card."""
    honest = RecordingCard(holder().connect())
    use(honest)
    for number in range(len(honest.exchanges)):
        connection = holder().connect()
        with contextlib.suppress(VmTokenError):
            use(Liar(connection, number, change))
        connection.close()
    assert piv_pins.user_pin_tries_left(holder().connect()) == 3


@settings(deadline=None, max_examples=100)
@given(st.lists(ANSWERS, min_size=1, max_size=6))
def test_wrong_pin_is_given_at_most_once(answers: list[bytes]) -> None:
    card = RecordingCard(Babbler(answers))
    with contextlib.suppress(VmTokenError):
        PivCard(card, SecretBytes(b"000000"))
    given_pins = [command for command, _ in card.exchanges if command[1] == 0x20 and len(command) > 5]
    assert len(given_pins) <= 1
