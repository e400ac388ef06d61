"""A token that is to stay closed for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dom0_broker.admission import Admission
from dom0_broker.inventory import Token
from dom0_broker.store import TokenRecord
from dom0_broker.worker import TokenWorker
from tests.fakes.token import FakeToken, Script
from vmtoken.clock import SystemClock
from vmtoken.errors import TokenUnavailable


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def token(script: Script) -> AsyncIterator[Token]:
    clock = SystemClock()
    worker = TokenWorker("web", lambda: FakeToken(script), card_timeout=5.0, clock=clock)
    token = Token(TokenRecord("web", "fake:web"), worker, Admission("web", capacity=4, clock=clock))
    yield token
    await worker.stop()


async def test_token_that_is_kept_closed_is_opened_by_nobody(token: Token, script: Script) -> None:
    await token.state()
    async with token.kept_closed():
        assert (script.opened, script.closed) == (1, 1)
        opening = asyncio.create_task(token.state())
        token.worker.look_again(lambda: True)
        assert not (await asyncio.wait([opening], timeout=0.05))[0]
        assert token.admission.busy
        assert script.opened == 1
    await opening
    assert script.opened == 2
    assert not token.admission.busy


async def test_token_that_was_kept_closed_is_free_after_a_failure(token: Token, script: Script) -> None:
    with pytest.raises(ZeroDivisionError):
        async with token.kept_closed():
            raise ZeroDivisionError
    await token.alone(lambda: None)
    await token.state()
    assert script.opened == 1


async def test_token_that_is_not_served_cannot_be_kept_closed(token: Token) -> None:
    await token.worker.stop()
    with pytest.raises(TokenUnavailable):
        async with token.kept_closed():
            raise AssertionError("not reached")
