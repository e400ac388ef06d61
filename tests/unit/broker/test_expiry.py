from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from dom0_broker.backends.base import Kept
from dom0_broker.expiry import ExpiryWatch
from dom0_broker.store import TokenRecord
from tests.fakes.clock import FixedClock
from tests.support.pki import DAY, NOW, Usage, pki
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import Assurance, TokenDescription

AHEAD = timedelta(days=30)
LASTING = pki().root.sub_authority("lasting", not_after=NOW + 1000 * DAY)


@dataclass
class OpenToken:
    """As much of a token as the watch looks at: its record, and what it said when it was opened."""

    record: TokenRecord
    chain: tuple[bytes, ...] | None
    worker: OpenToken = field(init=False)

    def __post_init__(self) -> None:
        self.worker = self

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def description(self) -> TokenDescription | None:
        if self.chain is None:
            return None
        return TokenDescription("1", Assurance.SOFTWARE, self.chain, (ProtocolVersion.TLS_1_3,), "test")


@dataclass
class Tokens:
    """The inventory."""

    all: list[OpenToken]

    def tokens(self) -> list[OpenToken]:
        return self.all


def chain_until(days: float) -> tuple[bytes, ...]:
    return LASTING.issue("web01", usage=Usage.CLIENT, not_after=NOW + timedelta(days=days)).chain_der


def watch(clock: FixedClock, *tokens: OpenToken) -> ExpiryWatch:
    return ExpiryWatch(Tokens(list(tokens)), clock, AHEAD)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(NOW.timestamp())


def test_warning_comes_thirty_days_ahead_once_a_day_and_an_error_when_it_is_over(
    clock: FixedClock, caplog: pytest.LogCaptureFixture
) -> None:
    it = watch(clock, OpenToken(TokenRecord("web", "soft:web"), chain_until(32)))
    told: list[tuple[int, str, int]] = []
    for hour in range(34 * 24):
        caplog.clear()
        it.look()
        it.look()
        told += [(hour, record.levelname, record.days_left) for record in caplog.records]
        clock.seconds += 3600
    assert told[0] == (48, "WARNING", 30)
    warned, failed = ([hour for hour, level, _ in told if level == each] for each in ("WARNING", "ERROR"))
    assert warned == list(range(2 * 24, 32 * 24 + 1, 24))
    assert failed == [32 * 24 + 1, 33 * 24 + 1]


def test_everything_that_ends_is_told_once_each(clock: FixedClock, caplog: pytest.LogCaptureFixture) -> None:
    ending = pki().root.sub_authority("ending", not_after=NOW + 10 * DAY)
    chain = ending.issue("web01", usage=Usage.CLIENT, not_after=NOW + 400 * DAY).chain_der
    kept = Kept(anchors=(ending.certificate_der, LASTING.certificate_der))
    it = watch(clock, OpenToken(TokenRecord("web", "soft:web", kept), chain))
    with caplog.at_level(logging.WARNING):
        it.look()
        it.look()
    assert sorted(record.what for record in caplog.records) == ["CA certificate of the chain", "trust anchor"]


def test_token_that_was_never_opened_is_known_by_what_the_broker_keeps(clock: FixedClock) -> None:
    kept = TokenRecord("web", "pkcs11:token=web", Kept(chain=chain_until(3)))
    token = OpenToken(kept, None)
    assert [each.days_left for each in watch(clock, token).of(token)] == [3]  # type: ignore[arg-type]
    token.chain = chain_until(300)  # renewed: what the token shows counts
    assert watch(clock, token).of(token) == []  # type: ignore[arg-type]


def test_renewed_certificate_is_not_warned_about(clock: FixedClock, caplog: pytest.LogCaptureFixture) -> None:
    token = OpenToken(TokenRecord("web", "soft:web"), chain_until(3))
    it = watch(clock, token)
    it.look()
    caplog.clear()
    token.chain = chain_until(300)
    clock.seconds += 2 * 86400
    it.look()
    assert caplog.records == []
