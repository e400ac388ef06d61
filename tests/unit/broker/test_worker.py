from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from dom0_broker.worker import TokenWorker
from tests.fakes.token import FakeToken, Script
from vmtoken.clock import SystemClock
from vmtoken.errors import (
    PinBlocked,
    PinMissing,
    PinRejected,
    TokenNotReady,
    TokenUnavailable,
    VmTokenError,
)
from vmtoken.token import HandshakeFailed, HandshakeToken


@asynccontextmanager
async def worker(script: Script, *, card_timeout: float = 5.0) -> AsyncIterator[TokenWorker]:
    worker = TokenWorker("web", lambda: FakeToken(script), card_timeout=card_timeout, clock=SystemClock())
    try:
        yield worker
    finally:
        assert await worker.stop()


def raising(error: BaseException) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def noop(_: HandshakeToken) -> None:
    pass


async def test_jobs_run_in_one_thread_in_order_on_a_token_opened_once() -> None:
    script, seen = Script(), []

    def job(number: int) -> Callable[[HandshakeToken], None]:
        return lambda _: seen.append((number, threading.current_thread().name))

    async with worker(script) as it:
        await asyncio.gather(*(it.run(job(number)) for number in range(20)))
        assert it.description is not None
    assert seen == [(number, "token web") for number in range(20)]
    assert (script.opened, script.closed) == (1, 1)


async def test_lost_card_is_opened_again_by_the_next_job() -> None:
    script = Script()
    async with worker(script) as it:
        script.before["start"] = raising(TokenUnavailable("gone"))
        with pytest.raises(TokenUnavailable, match="gone"):
            await it.run(lambda token: token.start(None, None))  # type: ignore[arg-type]
        assert script.closed == 1
        assert isinstance(it.problem, TokenUnavailable)
        await it.run(noop)
        assert it.problem is None
    assert (script.opened, script.closed) == (2, 2)


async def test_card_that_cannot_be_opened_is_not_tried_in_a_tight_loop() -> None:
    script = Script(before={"open": raising(TokenUnavailable("no card"))})
    async with worker(script) as it:
        for _ in range(10):
            with pytest.raises(TokenUnavailable, match="no card"):
                await it.run(noop)
    assert script.opened == 1


async def test_card_that_comes_back_is_opened_without_a_pause() -> None:
    script = Script(before={"open": raising(TokenUnavailable("no card"))})
    async with worker(script) as it:
        with pytest.raises(TokenUnavailable):
            await it.run(noop)
        del script.before["open"]
        it.look_again(lambda: True)
        await it.run(noop)
        assert it.problem is None
    assert script.opened == 2


async def test_card_that_goes_is_missed_before_anybody_needs_it() -> None:
    script = Script()
    async with worker(script) as it:
        await it.run(noop)
        it.look_again(lambda: True)
        await it.run(noop)
        assert (script.opened, script.closed) == (1, 0)
        script.before["open"] = raising(TokenUnavailable("in no reader"))
        it.look_again(lambda: False)
        with pytest.raises(TokenUnavailable, match="in no reader"):
            await it.run(noop)
    assert (script.opened, script.closed) == (2, 1)


@pytest.mark.parametrize(
    "error", [PinRejected("wrong PIN", retries_left=2), PinBlocked("b"), PinMissing("m")]
)
async def test_cards_that_come_and_go_are_no_reason_to_try_a_pin_again(error: VmTokenError) -> None:
    script = Script(before={"open": raising(error)})
    async with worker(script) as it:
        with pytest.raises(type(error)):
            await it.run(noop)
        for _ in range(10):
            it.look_again(lambda: True)
        with pytest.raises(type(error)):
            await it.run(noop)
    assert script.opened == 1


async def test_rejected_pin_is_never_tried_again_by_itself() -> None:
    script = Script(before={"open": raising(PinRejected("wrong PIN", retries_left=2))})
    async with worker(script) as it:
        for _ in range(5):
            with pytest.raises(PinRejected):
                await it.run(noop)
        assert script.opened == 1
        del script.before["open"]
        await it.run_closed(lambda: None)  # the operator gave another one
        await it.run(noop)
    assert script.opened == 2


@pytest.mark.parametrize(
    "problem",
    [PinRejected("wrong", retries_left=2), PinBlocked("blocked"), PinMissing("missing")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["as it is", "as the end of a handshake"])
async def test_token_whose_pin_fails_in_a_job_is_closed_and_opened_by_the_next(
    problem: VmTokenError, wrapped: bool
) -> None:
    script = Script(before={"start": raising(HandshakeFailed(problem) if wrapped else problem)})
    async with worker(script) as it:
        with pytest.raises((type(problem), HandshakeFailed)):
            await it.run(lambda token: token.start(None, None))  # type: ignore[arg-type]
        assert script.closed == 1
        assert it.problem is problem
        await it.run(noop)
    assert script.opened == 2


async def test_token_that_is_not_ready_is_asked_again() -> None:
    script = Script(before={"open": raising(TokenNotReady("no certificate"))})
    async with worker(script) as it:
        for _ in range(3):
            with pytest.raises(TokenNotReady):
                await it.run(noop)
    assert script.opened == 3


async def test_error_in_a_job_goes_to_its_caller_and_the_thread_goes_on() -> None:
    async with worker(Script()) as it:
        with pytest.raises(ZeroDivisionError):
            await it.run(lambda _: 1 // 0)
        assert await it.run(lambda _: "fine") == "fine"


async def test_hung_card_is_set_aside_and_comes_back() -> None:
    script, gate, entered = Script(), threading.Event(), threading.Event()

    def hang(_: HandshakeToken) -> None:
        entered.set()
        gate.wait()

    async with worker(script, card_timeout=0.05) as it:
        hung, behind = asyncio.create_task(it.run(hang)), asyncio.create_task(it.run(noop))
        for task in (hung, behind):
            with pytest.raises(TokenUnavailable, match="has not answered"):
                await task
        with pytest.raises(TokenUnavailable, match="has not answered"):
            await it.run(noop)
        assert isinstance(it.problem, TokenUnavailable)
        for _ in range(3):
            it.look_again(lambda: True)
        assert len(it._pending) == 3, "what comes and goes meanwhile does not pile up"
        gate.set()
        while it.problem is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await it.run(noop)
    assert (script.opened, script.closed) == (2, 2)


async def test_hung_card_of_one_token_does_not_stop_another() -> None:
    gate = threading.Event()
    async with worker(Script()) as hung, worker(Script()) as other:
        waiting = asyncio.create_task(hung.run(lambda _: gate.wait()))
        assert await other.run(lambda _: "fine") == "fine"
        gate.set()
        await waiting


async def test_job_of_a_caller_who_left_before_its_turn_is_not_done() -> None:
    gate, done = threading.Event(), []
    async with worker(Script()) as it:
        first = asyncio.create_task(it.run(lambda _: gate.wait()))
        second = asyncio.create_task(it.run(lambda _: done.append("second")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        gate.set()
        await first
        await it.run(noop)
    assert done == []


async def test_post_does_not_open_a_closed_token() -> None:
    script = Script()
    async with worker(script) as it:
        it.post(lambda token: token.abort())
        await it.run_closed(lambda: None)
        assert script.opened == 0


async def test_stopped_worker_refuses_at_once() -> None:
    script = Script()
    async with worker(script) as it:
        await it.run(noop)
        await it.stop()
        with pytest.raises(TokenUnavailable, match="not served any more"):
            await it.run(noop)
    assert (script.opened, script.closed) == (1, 1)
