"""A guest that does everything but what it should: the broker goes on, and nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from pathlib import Path

import grpc
import pytest

from tests.support.broker_app import (
    WEB01,
    WEB02,
    Cards,
    Stream,
    agent_of,
    broker_config,
    populate,
    running,
)
from vmtoken.rpc.convert import seconds_to_pb
from vmtoken.v1 import token_service_pb2 as pb


def any_step(dice: random.Random) -> pb.HandshakeRequest:
    """A step of any kind, at any time, with anything in it."""
    junk = dice.randbytes(dice.choice([0, 1, 5, 300, 70_000]))
    start = pb.HandshakeStart(
        token=dice.choice(["", "web", "nothing"]),
        server_name=dice.choice(["server.example", "", "\x00", "a" * 400, "evil.test"]),
        port=dice.choice([0, 443, 70_000]),
        alpn=dice.choice([[], ["h2"], [""], ["x" * 300], ["h2"] * 40]),
        min_version=dice.choice([0, 771, 772, 5]),  # type: ignore[arg-type]
        timeout=seconds_to_pb(dice.choice([0, 0.01, 3, 1e9])),
    )
    good = pb.HandshakeStart(server_name="server.example", port=443, timeout=seconds_to_pb(3))
    return dice.choice(
        [
            pb.HandshakeRequest(start=start),
            pb.HandshakeRequest(start=good),
            pb.HandshakeRequest(start=good),
            pb.HandshakeRequest(server_records=b"server flight"),
            pb.HandshakeRequest(server_records=b"server finished"),
            pb.HandshakeRequest(server_records=b"part"),
            pb.HandshakeRequest(server_records=junk),
            pb.HandshakeRequest(ticket=pb.SessionTicket(session_id=junk[:16], message=junk)),
            pb.HandshakeRequest(abort=pb.HandshakeAbort()),
            pb.HandshakeRequest(),
        ]
    )


async def misbehave(stream: Stream, dice: random.Random) -> None:
    """Send steps until the broker, or the guest, has had enough."""
    try:
        for _ in range(dice.randrange(1, 12)):
            await stream.call.write(any_step(dice))
            if dice.random() < 0.7:
                await asyncio.wait_for(stream.call.read(), 0.02)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
        pass
    finally:
        stream.call.cancel()


@pytest.mark.parametrize("seed", range(4))
async def test_random_steps_leave_the_token_free_and_nothing_behind(tmp_path: Path, seed: int) -> None:
    config = broker_config(tmp_path, policy="deny vm=* server=evil.test\nallow vm=* server=*", token_hold=1)
    populate(config, WEB01, WEB02, tokens={"web": [WEB01, WEB02]})
    dice = random.Random(seed)
    cards = Cards()
    async with running(config, cards) as app, agent_of(app, WEB01) as hostile, agent_of(app, WEB02) as other:
        honest = Stream(other)
        assert (await honest.handshake()).HasField("result")
        await misbehave(Stream(hostile), dice)
        before = await settled()
        for _ in range(5):
            await asyncio.gather(*(misbehave(Stream(hostile), dice) for _ in range(20)))
            assert (await honest.handshake(timeout=10)).HasField("result")
        await asyncio.wait_for(app.idle(), 5)
        assert await settled() == before
    assert cards.script("web").opened == cards.script("web").closed


async def test_flood_of_calls_does_not_stall_another_vm(tmp_path: Path) -> None:
    config = broker_config(tmp_path, vm_rate=50)
    populate(config, WEB01, WEB02, tokens={"one": [WEB01], "two": [WEB02]})
    async with (
        running(config, Cards()) as app,
        agent_of(app, WEB01) as hostile,
        agent_of(app, WEB02) as other,
    ):
        flood = [asyncio.ensure_future(flooding(hostile)) for _ in range(200)]
        for _ in range(10):
            answer = await asyncio.wait_for(Stream(other).handshake(), 2)
            assert answer.HasField("result")
        for task in flood:
            task.cancel()
        await asyncio.wait(flood)


async def flooding(stub: object) -> None:
    while True:
        await stub.ListTokens(pb.ListTokensRequest())  # type: ignore[attr-defined]


async def test_message_that_is_too_long_ends_its_stream_only(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    async with running(config, Cards()) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        await stream.start()
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.records(bytes(5 << 20))
        long = Stream(stub)
        await long.start()
        refused = await long.records(bytes((1 << 16) + 1))
        assert refused.failure.error.reason == "INVALID_REQUEST"
        assert (await Stream(stub).handshake()).HasField("result")


async def settled() -> tuple[int, int]:
    """Open descriptors and calls at work, when they do not change any more."""
    before, now = (0, 0), open_things()
    while before != now:
        await asyncio.sleep(0.1)
        before, now = now, open_things()
    return now


def open_things() -> tuple[int, int]:
    gc.collect()
    stacks = [task.get_stack(limit=1) for task in asyncio.all_tasks()]
    names = [stack[0].f_code.co_name for stack in stacks if stack]
    return len(os.listdir("/proc/self/fd")), names.count("_schedule_rpc_coro")
