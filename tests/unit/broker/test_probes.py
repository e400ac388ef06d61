from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from dom0_broker.pool import Probes
from dom0_broker.worker import TokenWorker
from tests.fakes.clock import FixedClock
from tests.fakes.token import FakeToken, Script
from vmtoken.errors import TokenNotFound, TokenUnavailable, VmTokenError


@dataclass
class Probed:
    """A token with a thread of its own, as the probes see it."""

    worker: TokenWorker
    name: str = "web"

    def tokens(self) -> list[Probed]:
        return [self]


@dataclass
class Rig:
    """One token, its probes, and the time that both go by."""

    script: Script
    token: Probed
    probes: Probes
    clock: FixedClock

    async def seconds(self, count: int) -> list[int]:
        """Let time pass, with a look every second; the seconds in which the card was tried."""
        tried = []
        for _ in range(count):
            before = self.script.opened
            self.probes.look()
            await asyncio.gather(*self.probes._running.values())
            if self.script.opened > before:
                tried.append(round(self.clock.seconds))
            self.clock.seconds += 1
        return tried


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    clock, script = FixedClock(), Script()
    worker = TokenWorker("web", lambda: FakeToken(script), card_timeout=5.0, clock=clock)
    token = Probed(worker)
    probes = Probes(token, clock)  # type: ignore[arg-type]
    yield Rig(script, token, probes, clock)
    await probes.close()
    assert await worker.stop()


def raising(error: VmTokenError) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


async def test_card_that_works_is_left_alone(rig: Rig) -> None:
    await rig.token.worker.run(lambda _: None)
    assert await rig.seconds(100) == []


@pytest.mark.parametrize(
    "error", [TokenUnavailable("gone"), TokenNotFound("nowhere")], ids=lambda e: e.reason
)
async def test_pauses_double_up_to_half_a_minute(rig: Rig, error: VmTokenError) -> None:
    rig.script.before["open"] = raising(error)
    with pytest.raises(VmTokenError):
        await rig.token.worker.run(lambda _: None)
    tried = await rig.seconds(200)
    assert tried[:4] == [1, 2, 4, 8]
    assert max(later - sooner for sooner, later in itertools.pairwise(tried)) <= 60


async def test_card_that_is_back_is_open_and_the_next_trouble_starts_with_short_pauses(rig: Rig) -> None:
    for _ in range(2):
        rig.script.before["open"] = raising(TokenUnavailable("gone"))
        await rig.token.worker.run_closed(lambda: None)
        with pytest.raises(TokenUnavailable):
            await rig.token.worker.run(lambda _: None)
        begun = round(rig.clock.seconds)
        tried = await rig.seconds(10)
        assert [each - begun for each in tried[:3]] == [1, 2, 4]
        rig.script.before.clear()
        await rig.seconds(60)
        assert rig.token.worker.problem is None
        assert await rig.seconds(60) == []
