"""Tokens that are keys of one card have one PIN and one counter: a try that one lost, no other loses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dom0_broker.pins import PinKeeper
from dom0_broker.safe import Safe
from dom0_broker.store import PinRecord, PinRole, Presented, Store, TokenRecord
from tests.fakes.pin_card import TRIES, PinCard, PowerCut, once, pulled
from vmtoken.clock import SystemClock
from vmtoken.errors import AlreadyExists, Conflict, PinRejected, TokenUnavailable
from vmtoken.secret import SecretBytes

SAFE = Safe(SecretBytes(bytes(range(32))))
USER, OPERATOR = PinRole.USER, PinRole.OPERATOR
RIGHT, WRONG, NEW = SecretBytes(b"1234"), SecretBytes(b"9999"), SecretBytes(b"5678")
CARD = "fake:card"


@dataclass
class Host:
    """A broker's disk, and tokens that are keys of one card."""

    path: Path
    card: PinCard = field(default_factory=PinCard)
    keeper: PinKeeper = field(init=False)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.path)
        self.start()

    def start(self) -> None:
        self.store.close()
        self.store = Store(self.path)
        self.keeper = PinKeeper(self.store, SAFE, SystemClock(), lambda event, fields: None, reserve=1)

    def add(self, token: str, pin: SecretBytes | None = None, holder: str = CARD) -> None:
        pins = {} if pin is None else {USER: pin}
        self.keeper.add(TokenRecord(token, f"fake:{token}"), pins, holder)

    def add_as_before(self, token: str, **facts: Any) -> None:
        """As a broker did to which each token had PINs of its own."""
        self.store.add_token(TokenRecord(token, f"fake:{token}"), {USER: PinRecord(**facts)})

    def sealed(self, token: str, pin: SecretBytes) -> bytes:
        return SAFE.seal(pin, f"user PIN of token {token}")

    def digest(self, token: str, pin: SecretBytes) -> bytes:
        return SAFE.digest(pin, f"user PIN of token {token}")

    def find_holders(self, *tokens: str) -> None:
        for token in tokens:
            self.keeper.find_holder(token, lambda: CARD)

    def open(self, token: str) -> str:
        with self.keeper.turn(token):
            return self.keeper.try_all(token, USER, self.card.read, self.card.open)

    def set(self, token: str, pin: SecretBytes) -> None:
        self.keeper.settle(token, self.card.read)
        self.keeper.propose(token, USER, pin)
        with self.keeper.presenting(token, (USER,), self.card.read) as pins:
            self.card.open(pins[USER])

    def remove(self, token: str) -> None:
        self.store.remove_token(token)
        self.keeper.forget(token)

    def kept(self, token: str) -> bytes | None:
        pin = self.keeper.in_use(token, USER)
        return pin and pin.reveal()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "broker.sqlite")
    yield host
    host.store.close()


def fails(call: Callable[[], object], error: type[BaseException]) -> None:
    for _ in range(2):
        with pytest.raises(error):
            call()


def test_wrong_pin_costs_one_try_over_all_tokens_of_the_card(host: Host) -> None:
    host.add("a", WRONG)
    host.add("b")
    fails(lambda: host.open("b"), PinRejected)
    host.start()
    fails(lambda: host.open("a"), PinRejected)
    fails(lambda: host.set("a", WRONG), PinRejected)
    assert host.card.attempts == [b"9999"]


def test_second_token_of_a_card_needs_no_pin(host: Host) -> None:
    host.add("a", RIGHT)
    host.open("a")
    host.add("b")
    host.start()
    assert host.open("b") == "open"
    assert host.keeper.sharers("a") == ["b"]
    assert host.keeper.sharers_of(CARD) == (["a", "b"], [USER])


def test_second_token_may_say_the_same_pin_and_no_other(host: Host) -> None:
    host.add("a", RIGHT)
    host.add("b", RIGHT)
    with pytest.raises(Conflict, match="known here from token 'a'"):
        host.add("c", WRONG)
    assert [token.name for token in host.store.tokens()] == ["a", "b"]
    with pytest.raises(AlreadyExists):
        host.add("a")
    assert host.kept("b") == b"1234"


def test_pin_that_was_refused_is_not_given_with_another_token(host: Host) -> None:
    host.add("a", WRONG)
    fails(lambda: host.open("a"), PinRejected)
    with pytest.raises(PinRejected):
        host.add("b", WRONG)
    host.add("b", RIGHT)
    assert host.open("a") == "open"
    assert host.card.attempts == [b"9999", b"1234"]


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("error", [PowerCut(), pulled(), None])
def test_pin_changed_through_one_token_is_that_of_all(
    host: Host, lost: str, error: BaseException | None
) -> None:
    host.add("a", RIGHT)
    host.add("b")
    host.open("b")
    if error is not None:
        setattr(host.card, lost, once(error))
    try:
        host.keeper.change("a", NEW, host.card.read, host.card.change)
    except (PowerCut, TokenUnavailable):
        host.start()
    for token in "ba":
        assert host.open(token) == "open"
        assert host.kept(token) == host.card.user
    assert host.card.tries_left == TRIES


def test_pin_that_an_open_token_lost_is_not_given_by_the_other(host: Host) -> None:
    host.add("a", RIGHT)
    host.add("b")
    host.open("a")
    host.keeper.refused_later("a", PinRejected("changed elsewhere", retries_left=2))
    fails(lambda: host.open("b"), PinRejected)
    assert host.card.attempts == [b"1234"]


def test_tokens_that_are_opened_at_once_take_turns(host: Host) -> None:
    host.add("a", WRONG)
    host.add("b")
    problems: list[BaseException] = []

    def opened(token: str) -> None:
        try:
            host.open(token)
        except PinRejected as error:
            problems.append(error)

    threads = [threading.Thread(target=opened, args=(token,)) for token in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(problems) == 4
    assert host.card.attempts == [b"9999"]


def test_last_token_of_a_card_takes_the_pin_with_it(host: Host) -> None:
    host.add("a", RIGHT)
    host.add("b")
    host.remove("a")
    assert host.keeper.sharers("b") == []
    host.start()
    assert host.open("b") == "open"
    host.remove("b")
    assert host.store.pins() == {}
    host.add("a")
    assert host.kept("a") is None
    host.start()
    assert host.kept("a") is None


def test_token_whose_card_is_not_known_has_a_pin_of_its_own_until_it_is(host: Host) -> None:
    host.add("a", RIGHT)
    host.add("b", WRONG, holder="")
    assert host.keeper.sharers("b") == []
    host.open("a")

    def away() -> str:
        raise pulled()

    with pytest.raises(TokenUnavailable):
        host.keeper.find_holder("b", away)
    host.find_holders("b")
    host.start()
    host.keeper.find_holder("b", away)  # it is known for good
    assert host.open("b") == "open"
    assert host.card.attempts == [b"1234", b"1234"]


# Databases of brokers to which each token had PINs of its own.


def test_pins_of_two_tokens_become_one(host: Host) -> None:
    host.add_as_before("a", sealed=host.sealed("a", RIGHT), accepted=True, tries_left=3, told_at=2.0)
    host.add_as_before("b", sealed=host.sealed("b", WRONG), accepted=True, tries_left=2, told_at=1.0)
    host.start()
    host.find_holders("b", "a")
    host.start()
    assert host.kept("a") == host.kept("b") == b"1234"
    assert host.keeper.record("b", USER).tries_left == 3
    assert host.open("b") == "open"


def test_older_of_two_pins_is_not_tried_after_the_other_was_refused(host: Host) -> None:
    host.add_as_before("a", sealed=host.sealed("a", WRONG), accepted=True, told_at=2.0)
    host.add_as_before("b", sealed=host.sealed("b", NEW), accepted=True, told_at=1.0)
    host.start()
    host.find_holders("a", "b")
    fails(lambda: host.open("a"), PinRejected)
    fails(lambda: host.open("b"), PinRejected)
    assert host.card.attempts == [b"9999"]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_pin_that_one_token_was_refused_is_not_tried_for_the_other(host: Host, order: str) -> None:
    refused = host.digest("a", WRONG)
    host.add_as_before("a", rejected=True, refused=(refused,), tries_left=2, told_at=1.0)
    host.add_as_before("b", sealed=host.sealed("b", WRONG), refused=(host.digest("b", NEW),))
    host.start()
    host.find_holders(*order)
    for token in "ab":
        fails(lambda token=token: host.open(token), PinRejected)  # type: ignore[misc]
        for pin in (WRONG, NEW):
            fails(lambda token=token, pin=pin: host.set(token, pin), PinRejected)  # type: ignore[misc]
    assert host.card.attempts == []


@pytest.mark.parametrize(("left", "attempts"), [(2, []), (3, [b"9999"])])
def test_doubt_about_a_pin_is_settled_by_the_counter(host: Host, left: int, attempts: list[bytes]) -> None:
    digest = host.digest("a", WRONG)
    host.add_as_before("a", sealed=host.sealed("a", WRONG), presented=Presented.CURRENT, tries_before=3,
                       refused=(digest,))  # fmt: skip
    host.add_as_before("b", sealed=host.sealed("b", WRONG), accepted=True, told_at=1.0)
    host.start()
    host.find_holders("a", "b")
    host.card.tries_left = left
    fails(lambda: host.open("b"), PinRejected)
    assert host.card.attempts == attempts


def test_pending_pin_comes_along(host: Host) -> None:
    host.add_as_before("a", sealed=host.sealed("a", RIGHT), pending=host.sealed("a", NEW), accepted=True)
    host.card = replace(host.card, user=b"5678")
    host.start()
    host.find_holders("a")
    assert host.open("a") == "open"
    assert host.kept("a") == b"5678"
    assert host.card.attempts == [b"5678"]
