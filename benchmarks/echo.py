"""What a message on an open gRPC stream costs here, with our channel options and nothing else behind it."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from vmtoken.rpc.channel import private_server, unix_channel
from vmtoken.v1 import token_service_pb2 as pb
from vmtoken.v1.token_service_pb2_grpc import (
    TokenServiceServicer,
    TokenServiceStub,
    add_TokenServiceServicer_to_server,
)

OCTETS = 1_500
"""As long as a flight of a handshake."""


class EchoStream:
    """An open stream to a server in another process that answers every message at once."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._channel = self._loop.run_until_complete(_channel(path))
        self._call = TokenServiceStub(self._channel).Handshake()

    def round_trip(self) -> float:
        """Microseconds for one message there and one back."""
        return self._loop.run_until_complete(self._exchange())

    async def _exchange(self) -> float:
        started = time.perf_counter()
        await self._call.write(pb.HandshakeRequest(server_records=bytes(OCTETS)))
        await self._call.read()
        return (time.perf_counter() - started) * 1e6

    def close(self) -> None:
        """End the stream and the connection."""
        self._call.cancel()
        self._loop.run_until_complete(self._channel.close())
        self._loop.close()


async def _channel(path: Path) -> Any:
    return unix_channel(path)


@contextmanager
def echo_stream(directory: Path) -> Iterator[EchoStream]:
    """As long as the block lasts."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    path = directory / "echo.sock"
    process = context.Process(target=_serve, args=(path, ready), daemon=True)
    process.start()
    ready.wait()
    stream = EchoStream(path)
    try:
        yield stream
    finally:
        stream.close()
        process.terminate()
        process.join()


class _Echo(TokenServiceServicer):
    async def Handshake(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.HandshakeRequest], context: Any
    ) -> AsyncIterator[pb.HandshakeResponse]:
        async for request in request_iterator:
            yield pb.HandshakeResponse(flight=pb.ClientFlight(records=request.server_records))


def _serve(path: Path, ready: Event) -> None:
    asyncio.run(_run(path, ready))


async def _run(path: Path, ready: Event) -> None:
    server = private_server(path, "benchmark", max_streams=10)
    add_TokenServiceServicer_to_server(_Echo(), server)
    await server.start()
    ready.set()
    await server.wait_for_termination()
