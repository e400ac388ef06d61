"""PINs are presented once, wiped when refused, and never lost between a card and the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dom0_broker.pins import PinKeeper
from dom0_broker.safe import Safe
from dom0_broker.store import NO_PIN, PinRecord, PinRole, Store, TokenRecord
from tests.fakes.pin_card import OPERATOR_TRIES, TRIES, PinCard, PowerCut, once, pulled
from vmtoken.clock import SystemClock
from vmtoken.errors import (
    Conflict,
    InvalidRequest,
    PinBlocked,
    PinMissing,
    PinRejected,
    TokenNotReady,
    TokenUnavailable,
    VmTokenError,
)
from vmtoken.secret import SecretBytes

SAFE = Safe(SecretBytes(bytes(range(32))))
USER, OPERATOR = PinRole.USER, PinRole.OPERATOR
RIGHT, WRONG, NEW = SecretBytes(b"1234"), SecretBytes(b"9999"), SecretBytes(b"5678")


@dataclass
class Host:
    """A broker's disk with one token, `web`, and the card behind it."""

    path: Path
    card: PinCard = field(default_factory=PinCard)
    reserve: int = 1
    events: list[tuple[str, Any]] = field(default_factory=list)
    keeper: PinKeeper = field(init=False)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.path)
        self.start()

    def start(self) -> None:
        """A broker starts, after whatever became of the earlier one."""
        self.store.close()
        self.store = Store(self.path)
        self.keeper = PinKeeper(self.store, SAFE, SystemClock(), self._report, reserve=self.reserve)

    def add(self, **pins: SecretBytes) -> None:
        self.keeper.add(TokenRecord("web", "fake:web"), {PinRole(role): pin for role, pin in pins.items()})

    def open(self) -> str:
        return self.keeper.try_all("web", USER, self.card.read, self.card.open)

    def issue(self) -> str:
        with self.keeper.presenting("web", (OPERATOR, USER), self.card.read) as pins:
            return self.card.open_issuer(pins[OPERATOR])

    def set(self, pin: SecretBytes, *, again: bool = False) -> None:
        self.keeper.settle("web", self.card.read)
        self.keeper.propose("web", USER, pin, again=again)
        with self.keeper.presenting("web", (USER,), self.card.read) as pins:
            self.card.open(pins[USER])

    def change(self, new: SecretBytes = NEW) -> None:
        self.keeper.change("web", new, self.card.read, self.card.change)

    def unblock(self, code: SecretBytes | None = None, new: SecretBytes = NEW) -> None:
        self.keeper.unblock("web", code, new, self.card.read, self.card.unblock)

    def record(self, role: PinRole = USER) -> PinRecord:
        return self.keeper.record("web", role)

    def kept(self, role: PinRole = USER) -> bytes | None:
        pin = self.keeper.in_use("web", role)
        return pin and pin.reveal()

    def _report(self, event: str, fields: Any) -> None:
        self.events.append((event, dict(fields)))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "broker.sqlite")
    yield host
    host.store.close()


def fails(call: Callable[[], object], error: type[BaseException], times: int = 3) -> None:
    for _ in range(times):
        with pytest.raises(error):
            call()


def test_right_pin_opens_the_token_again_and_again(host: Host) -> None:
    host.add(user=RIGHT)
    for _ in range(3):
        assert host.open() == "open"
        host.start()
    assert host.record().accepted
    assert host.record().presented is None
    assert host.record().refused == ()
    assert host.record().tries_left == TRIES


def test_wrong_pin_costs_one_try_in_all_lives_of_the_broker(host: Host) -> None:
    host.add(user=WRONG, operator=WRONG)
    for _ in range(3):
        fails(host.open, PinRejected)
        fails(host.issue, PinRejected)
        host.start()
    assert host.card.attempts == [b"9999", b"9999"]
    assert (host.kept(USER), host.kept(OPERATOR)) == (None, None)
    assert SAFE.seal(WRONG, "x") not in (host.record().sealed, host.record().pending)
    rejected = [("pin-rejected", {"token": "web", "pin": pin, "tries_left": left}) for pin, left in COUNTERS]
    assert host.events == rejected


COUNTERS = [("user", TRIES - 1), ("operator", OPERATOR_TRIES - 1)]


def test_refused_pin_is_not_tried_when_it_is_given_again(host: Host) -> None:
    host.add(user=RIGHT)
    for pin in (WRONG, NEW):
        with pytest.raises(PinRejected):
            host.set(pin)
        host.open()
    for pin in (WRONG, NEW, WRONG):
        with pytest.raises(PinRejected, match="refused this user PIN before"):
            host.set(pin)
        host.start()
    assert host.card.attempts == [b"9999", b"1234", b"5678", b"1234"]
    with pytest.raises(PinRejected):
        host.set(WRONG, again=True)
    assert host.card.attempts[-1] == b"9999"


def test_wrong_pin_given_to_a_token_that_works_leaves_it_working(host: Host) -> None:
    host.add(user=RIGHT)
    host.open()
    with pytest.raises(PinRejected, match="2 tries"):
        host.set(WRONG)
    assert host.open() == "open"
    assert host.card.tries_left == TRIES


def test_right_pin_lifts_the_rejection(host: Host) -> None:
    host.add(user=WRONG)
    fails(host.open, PinRejected)
    host.set(RIGHT)
    host.start()
    assert host.open() == "open"
    with pytest.raises(PinRejected, match="refused this user PIN before"):
        host.set(WRONG)


@pytest.mark.parametrize("reserve", [1, 2])
def test_reserve_is_never_touched(tmp_path: Path, reserve: int) -> None:
    host = Host(tmp_path / "broker.sqlite", PinCard(tries_left=reserve, operator_tries_left=reserve), reserve)
    host.add(user=RIGHT, operator=RIGHT)
    for call in (host.open, host.issue, host.change, host.unblock, lambda: host.unblock(NEW)):
        fails(call, PinBlocked)
    fails(lambda: host.set(WRONG), PinBlocked)
    assert host.card.attempts == []
    assert host.record().sealed is not None


def test_reserve_of_none_spends_the_last_try_once(tmp_path: Path) -> None:
    host = Host(tmp_path / "broker.sqlite", PinCard(tries_left=1), 0)
    host.add(user=WRONG)
    fails(host.open, PinBlocked, times=1)
    fails(host.open, PinRejected)
    assert host.card.attempts == [b"9999"]
    assert host.record().tries_left == 0


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("error", [PowerCut(), pulled()])
def test_answer_that_is_lost_costs_no_second_try(
    host: Host, lost: str, error: BaseException, tells: bool
) -> None:
    host.add(user=WRONG)
    host.card.tells = tells
    setattr(host.card, lost, once(error))
    fails(host.open, type(error), times=1)
    for _ in range(3):
        host.start()
        fails(host.open, PinRejected)
    assert len(host.card.attempts) == (1 if lost == "after" or tells else 0)


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("lost", ["before", "after"])
def test_pin_that_has_worked_works_after_a_lost_answer(host: Host, lost: str, tells: bool) -> None:
    host.add(user=RIGHT)
    host.card.tells = tells
    host.open()
    setattr(host.card, lost, once(PowerCut()))
    fails(host.open, PowerCut, times=1)
    host.start()
    assert host.open() == "open"
    assert host.record().presented is None


def test_somebody_else_who_lost_tries_is_an_alarm_and_no_reason_to_wipe(host: Host) -> None:
    host.add(user=RIGHT)
    host.open()
    host.card.tries_left = 2
    assert host.open() == "open"
    facts = {"token": "web", "pin": "user", "tries_left": 2, "tries_before": 3}
    assert host.events == [("pin-tries-lost", facts)]
    host.keeper.told("web", host.card.read())
    assert len(host.events) == 1


def test_changed_pin_is_the_one_in_use(host: Host) -> None:
    host.add(user=RIGHT)
    host.change()
    host.start()
    assert host.open() == "open"
    assert (host.kept(), host.card.user, host.card.tries_left) == (b"5678", b"5678", TRIES)


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("error", [PowerCut(), pulled()])
@pytest.mark.parametrize("how", ["change", "unblock"])
def test_pin_is_not_lost_between_card_and_store(
    host: Host, how: str, error: BaseException, lost: str, tells: bool
) -> None:
    host.add(user=RIGHT, operator=SecretBytes(b"87654321"))
    host.open()
    host.card.tells = tells
    setattr(host.card, lost, once(error))
    fails(getattr(host, how), type(error), times=1)
    host.start()
    assert host.open() == "open"
    assert host.kept() == host.card.user == (b"5678" if lost == "after" else b"1234")
    assert host.card.tries_left == TRIES


def test_change_of_a_pin_that_is_refused_wipes_both(host: Host) -> None:
    host.add(user=WRONG)
    with pytest.raises(PinRejected):
        host.change()
    fails(host.open, PinRejected)
    assert (host.card.attempts, host.card.user, host.kept()) == ([b"9999"], b"1234", None)


def test_change_that_was_refused_and_lost_tries_neither_again(host: Host) -> None:
    host.add(user=WRONG)
    host.card.after = once(PowerCut())
    fails(host.change, PowerCut, times=1)
    host.start()
    fails(host.open, PinRejected)
    assert host.card.attempts == [b"9999"]


@pytest.mark.parametrize("how", ["change", "unblock"])
def test_new_pin_that_the_card_does_not_like_leaves_the_earlier_one(host: Host, how: str) -> None:
    host.add(user=RIGHT, operator=SecretBytes(b"87654321"))
    host.card.before = once(Conflict("A PIN has 4 to 8 printable characters."))
    fails(getattr(host, how), Conflict, times=1)
    assert host.open() == "open"
    assert (host.kept(), host.record().pending) == (b"1234", None)


def test_pin_in_doubt_is_settled_before_it_is_changed_again(host: Host) -> None:
    host.add(user=RIGHT)
    host.card.after = once(pulled())
    fails(host.change, TokenUnavailable, times=1)
    with pytest.raises(Conflict, match="has not shown yet"):
        host.change(SecretBytes(b"4321"))
    host.open()
    host.change(SecretBytes(b"4321"))
    assert host.kept() == host.card.user == b"4321"


def test_unblocking_gives_a_pin_that_was_wiped_back(host: Host) -> None:
    host.add(user=WRONG, operator=SecretBytes(b"87654321"))
    fails(host.open, PinRejected)
    host.card.tries_left = 0
    host.unblock()
    assert host.open() == "open"
    assert host.card.user == b"5678"


def test_code_given_by_hand_is_tried_once_and_not_kept(host: Host) -> None:
    host.add()
    fails(lambda: host.unblock(WRONG), PinRejected)
    host.start()
    fails(lambda: host.unblock(WRONG), PinRejected)
    assert host.card.attempts == [b"9999"]
    with pytest.raises(PinMissing, match="--code"):
        host.unblock()
    host.unblock(SecretBytes(b"87654321"))
    assert host.open() == "open"
    assert host.kept(OPERATOR) is None


@pytest.mark.parametrize("lost", ["before", "after"])
def test_code_whose_answer_was_lost_is_settled_by_the_counter(host: Host, lost: str) -> None:
    host.add(operator=SecretBytes(b"87654321"))
    host.issue()
    setattr(host.card, lost, once(PowerCut()))
    fails(lambda: host.unblock(WRONG), PowerCut, times=1)
    host.start()
    fails(lambda: host.unblock(WRONG), PinRejected)
    assert host.card.attempts.count(b"9999") == 1
    assert host.issue() == "open"  # what is kept was not what was refused


def test_reserve_of_a_code_whose_counter_nobody_tells_is_counted(host: Host) -> None:
    host.card.tells_of_operator, host.card.operator_tries_left = False, 3
    host.add()
    host.card.after = once(pulled())
    fails(lambda: host.unblock(WRONG), TokenUnavailable, times=1)
    host.start()
    with pytest.raises(PinRejected, match="1 try"):
        host.unblock(NEW)
    fails(lambda: host.unblock(SecretBytes(b"00000000")), PinBlocked)
    assert host.card.operator_tries_left == 1


def test_reserve_of_a_code_that_is_kept_is_counted_too(host: Host) -> None:
    host.card.tells_of_operator, host.card.operator_tries_left = False, 3
    host.add(operator=SecretBytes(b"11111111"))
    host.card.after = once(pulled())
    fails(host.unblock, TokenUnavailable, times=1)
    host.start()
    host.keeper.settle("web", host.card.read)
    for code, error in ((b"22222222", PinRejected), (b"33333333", PinBlocked)):
        host.keeper.propose("web", OPERATOR, SecretBytes(code))
        with host.keeper.presenting("web", (OPERATOR,), host.card.read):
            pass  # the card takes it for something else than a code, as a management key
        fails(host.unblock, error, times=1)
    assert host.card.operator_tries_left == 1


def test_right_pin_is_not_lost_while_the_earlier_one_is_in_doubt(host: Host) -> None:
    host.add(user=WRONG)
    host.card.after = once(pulled())
    fails(host.open, TokenUnavailable, times=1)
    host.set(RIGHT)
    assert host.open() == "open"
    assert host.card.attempts.count(b"9999") == 1


def test_management_key_is_not_taken_for_a_code(host: Host) -> None:
    host.add(operator=SecretBytes(bytes(24)))
    fails(host.unblock, PinMissing)
    assert host.card.attempts == []


def test_personalisation_wipes_the_pin_that_was_wrong_and_no_other(host: Host) -> None:
    host.add(user=RIGHT, operator=WRONG)
    fails(host.issue, PinRejected)
    assert host.kept(OPERATOR) is None
    assert host.open() == "open"


def test_card_that_is_not_there_is_not_given_anything(host: Host) -> None:
    host.add(user=RIGHT)
    gone = host.card.read

    def read() -> Any:
        raise pulled()

    host.card.read = read  # type: ignore[method-assign]
    fails(lambda: host.set(WRONG), TokenUnavailable, times=1)
    host.keeper.withdraw("web", USER, NO_PIN)
    host.card.read = gone  # type: ignore[method-assign]
    assert host.open() == "open"
    assert host.card.attempts == [b"1234"]


def test_token_that_is_not_ready_says_nothing_about_its_pin(host: Host) -> None:
    host.add(user=RIGHT)
    host.card.after = once(TokenNotReady("no identity"))
    fails(host.open, TokenNotReady, times=1)
    assert (host.record().presented, host.record().accepted) == (None, False)
    assert host.open() == "open"


def test_open_token_that_refuses_its_pin_later_is_not_given_it_again(host: Host) -> None:
    host.add(user=RIGHT)
    host.open()
    host.keeper.refused_later("web", PinRejected("changed elsewhere", retries_left=2))
    host.start()
    fails(host.open, PinRejected)
    assert host.card.attempts == [b"1234"]


def test_pin_that_only_the_uri_knows_is_not_tried_again_either(host: Host) -> None:
    host.add()
    tried = []

    def login(pin: SecretBytes | None) -> None:
        tried.append(pin)
        raise PinRejected("wrong", retries_left=2)

    for _ in range(3):
        fails(lambda: host.keeper.try_all("web", USER, host.card.read, login), PinRejected)
        host.start()
    assert tried == [None]
    fails(host.issue, PinRejected)


def test_what_cannot_be_kept_is_not_presented(host: Host) -> None:
    host.add(user=RIGHT)
    host.store.close()
    fails(host.open, VmTokenError)
    assert host.card.attempts == []


def test_empty_pin_is_none(host: Host) -> None:
    host.add()
    fails(lambda: host.set(SecretBytes(b"")), InvalidRequest)


# PIN sources.


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "pin"
    path.touch(0o600)
    return path


def test_pin_comes_from_a_file_at_each_use_and_is_not_stored(host: Host, source: Path) -> None:
    host.add(user=WRONG)
    source.write_bytes(b"1234\n")
    host.keeper.use_source("web", USER, source)
    assert host.open() == "open"
    assert host.record().sealed is None
    host.card.user = b"5678"
    source.write_bytes(b"5678")
    host.start()
    assert host.open() == "open"


def test_refused_content_is_not_tried_again_and_a_changed_one_is(host: Host, source: Path) -> None:
    host.add()
    source.write_bytes(b"9999\n")
    host.keeper.use_source("web", USER, source)
    for _ in range(3):
        fails(host.open, PinRejected)
        host.start()
    source.write_bytes(b"8888\n")
    fails(host.open, PinRejected)
    source.write_bytes(b"9999\r\n")
    host.card.tries_left = TRIES
    fails(host.open, PinRejected)
    assert host.card.attempts == [b"9999", b"8888"]
    source.write_bytes(b"1234\nnotes\n")
    assert host.open() == "open"


def test_content_whose_answer_was_lost_is_not_tried_again(host: Host, source: Path) -> None:
    host.add()
    source.write_bytes(b"9999\n")
    host.keeper.use_source("web", USER, source)
    host.card.after = once(PowerCut())
    fails(host.open, PowerCut, times=1)
    host.start()
    fails(host.open, PinRejected)
    assert host.card.attempts == [b"9999"]


def test_changed_pin_takes_the_place_of_the_file(host: Host, source: Path) -> None:
    host.add()
    source.write_bytes(b"1234\n")
    host.keeper.use_source("web", USER, source)
    host.change()
    assert (host.record().source, host.kept()) == ("", b"5678")


@pytest.mark.parametrize(
    ("mode", "content", "error", "says"),
    [
        (0o640, b"1234", Conflict, "mode 0640"),
        (0o604, b"1234", Conflict, "chmod 0600"),
        (0o600, b"", PinMissing, "no PIN"),
        (0o600, b"\n1234", PinMissing, "no PIN"),
        (0o600, b"1" * 300, PinMissing, "no PIN"),
    ],
)
def test_file_is_looked_at_before_it_is_believed(
    host: Host, source: Path, mode: int, content: bytes, error: type[Exception], says: str
) -> None:
    host.add(user=RIGHT)
    source.write_bytes(content)
    source.chmod(mode)
    with pytest.raises(error, match=says):
        host.keeper.use_source("web", USER, source)
    assert host.open() == "open"


def test_source_is_a_file(host: Host, tmp_path: Path) -> None:
    host.add()
    with pytest.raises(Conflict, match="not a regular file"):
        host.keeper.use_source("web", USER, tmp_path)
    with pytest.raises(PinMissing, match="cannot be read"):
        host.keeper.use_source("web", USER, tmp_path / "missing")
    with pytest.raises(InvalidRequest, match="absolute"):
        host.keeper.use_source("web", USER, Path("pin"))
