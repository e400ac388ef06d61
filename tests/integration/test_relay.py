"""What one end of a splice receives, the other sends: data, half-close, close, back-pressure."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from vmtoken.rpc.front_door import FrontDoor
from vmtoken.transport import unix
from vmtoken.transport.relay import SpliceEnd

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def spliced(tmp_path: Path) -> AsyncIterator[tuple[Ends, Ends]]:
    """A caller's end and a server's end with a front door between them."""
    arrived: asyncio.Queue[Ends] = asyncio.Queue()

    async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await arrived.put((reader, writer))

    async def server_of(_: None) -> Path:
        return tmp_path / "server.sock"

    door = FrontDoor(lambda transport: None, server_of)
    server = await asyncio.start_unix_server(arrive, tmp_path / "server.sock")
    listener = await unix.listen(tmp_path / "door.sock", 0o600, door.protocol)
    caller = await asyncio.open_unix_connection(tmp_path / "door.sock")
    far = await arrived.get()
    try:
        yield caller, far
    finally:
        for _, writer in (caller, far):
            writer.close()
        listener.close()
        await door.close()
        server.close()
        assert door.visitors == 0


async def test_data_and_half_close_pass_both_ways(tmp_path: Path) -> None:
    async with spliced(tmp_path) as ((reader, writer), (far_reader, far_writer)):
        writer.write(b"question")
        writer.write_eof()
        assert await far_reader.read() == b"question"
        far_writer.write(b"answer")
        far_writer.write_eof()
        assert await reader.read() == b"answer"


async def test_an_end_that_goes_away_takes_the_other_with_it(tmp_path: Path) -> None:
    async with spliced(tmp_path) as ((_, writer), (far_reader, _)):
        writer.transport.abort()
        assert await asyncio.wait_for(far_reader.read(), 5) == b""


async def test_a_reader_that_stops_stops_the_writer(tmp_path: Path) -> None:
    async with spliced(tmp_path) as ((_, writer), (far_reader, far_writer)):
        far_writer.transport.pause_reading()
        octets = os.urandom(16 << 20)
        writer.write(octets)
        sending = asyncio.create_task(writer.drain())
        await asyncio.sleep(0.1)
        assert not sending.done(), "16 MiB went somewhere although nobody reads"
        far_writer.transport.resume_reading()
        assert await far_reader.readexactly(len(octets)) == octets
        await sending


async def test_data_sent_before_the_server_is_there_is_not_lost(tmp_path: Path) -> None:
    gate = asyncio.Event()
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await received.put(await reader.read())
        writer.close()

    async def server_of(_: None) -> Path:
        await gate.wait()
        return tmp_path / "server.sock"

    identify: Callable[[asyncio.BaseTransport], None] = lambda transport: None  # noqa: E731
    door = FrontDoor(identify, server_of)
    async with (
        await asyncio.start_unix_server(arrive, tmp_path / "server.sock"),
        await unix.listen(tmp_path / "door.sock", 0o600, door.protocol),
    ):
        _, writer = await asyncio.open_unix_connection(tmp_path / "door.sock")
        writer.write(b"early")
        writer.write_eof()
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.wait_for(received.get(), 5) == b"early"
        writer.close()
        await door.close()


class EagerTransport(asyncio.Transport):
    """Reads after `connection_made` whatever was said there, as Python before 3.11.3 does."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.written = True, b""

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data


async def test_data_that_a_transport_brings_too_early_is_kept() -> None:
    ends, transports = (SpliceEnd(), SpliceEnd()), (EagerTransport(), EagerTransport())
    for end, transport, data in zip(ends, transports, (b"from here", b"from there"), strict=True):
        end.connection_made(transport)
        transport.reading = True
        end.data_received(data)
        assert not transport.reading
    ends[0].join(ends[1])
    assert [transport.written for transport in transports] == [b"from there", b"from here"]
    assert all(transport.reading for transport in transports)
