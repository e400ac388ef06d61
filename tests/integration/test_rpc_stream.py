"""A stream that ends while its client writes: what was sent and the status both arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from vmtoken.rpc.stream import Stream

ROUNDS = 50
"""Without `Stream`, about half of the calls lose their status, or what came before it."""

Call = Stream[bytes, bytes]


class Ending(grpc.GenericRpcHandler):
    """Answers the first message, and ends the call soon after: `fails` is how."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.stream_stream_rpc_method_handler(self._serve)  # type: ignore[arg-type]  # stubs know threads only

    async def _serve(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        yield await anext(requests)
        await asyncio.sleep(0.002)
        yield b"last"
        if self._fails:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the reason")


@asynccontextmanager
async def calls(*, fails: bool) -> AsyncIterator[grpc.aio.StreamStreamMultiCallable[bytes, bytes]]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Ending(fails=fails),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel.stream_stream("/test/Ending")
    finally:
        await server.stop(0)


async def write_to_the_end(call: Call) -> None:
    while await call.write(bytes(50_000)):
        pass


async def opened(method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]) -> Call:
    call = Stream(method())
    assert await call.write(b"first")
    assert await call.read() == b"first"
    return call


async def test_status_survives_a_write_that_meets_it() -> None:
    async with calls(fails=True) as method:
        for _ in range(ROUNDS):
            call = await opened(method)
            writing = asyncio.create_task(write_to_the_end(call))
            assert await call.read() == b"last"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert (caught.value.code(), caught.value.details()) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "the reason",
            )
            await writing


async def test_what_came_before_the_status_is_read_after_a_failed_write() -> None:
    async with calls(fails=True) as method:
        for _ in range(ROUNDS):
            call = await opened(method)
            await write_to_the_end(call)
            assert await call.read() == b"last"
            with pytest.raises(grpc.aio.AioRpcError, match="the reason"):
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError, match="the reason"):
                await call.read()


async def test_good_end_is_a_good_end_for_one_who_writes() -> None:
    async with calls(fails=False) as method:
        for _ in range(ROUNDS):
            call = await opened(method)
            await write_to_the_end(call)
            await call.done_writing()
            assert await call.read() == b"last"
            assert await call.read() is None
