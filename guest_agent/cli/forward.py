"""`vmtoken forward`: a local listener whose every connection becomes a TLS session."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from guest_agent.client import MAX_DATA, AgentClient, Tunnel
from vmtoken.errors import VmTokenError
from vmtoken.transport import unix
from vmtoken.v1 import tls_service_pb2 as pb


async def forward(socket: Path, listen: str, request: pb.ConnectRequest, timeout: float) -> int:
    """Serve until SIGINT or SIGTERM. Raises `OSError` when the address cannot be had."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AgentClient(socket) as agent, Forwarder(agent, request, timeout).listening(listen) as where:
        print(f"forwarding {where} to {request.host} port {request.port}", file=sys.stderr, flush=True)
        await stop.wait()
    return 0


class Forwarder:
    """Leads plain connections to one server, each in a session of its own."""

    def __init__(self, agent: AgentClient, request: pb.ConnectRequest, timeout: float) -> None:
        self._agent = agent
        self._timeout = timeout
        self._request = request
        self._connections: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, listen: str) -> AsyncIterator[str]:
        """Listen at `[ADDRESS:]PORT` or `unix:PATH`; gives the address as text. Raises `OSError`."""
        server = await self._listen(listen)
        try:
            yield _address(server, listen)
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            _remove_socket(listen)

    async def _listen(self, listen: str) -> asyncio.Server:
        if listen.startswith("unix:"):
            path = Path(listen.removeprefix("unix:"))
            return await unix.listen(path, 0o600, self._protocol)
        host, _, port = listen.rpartition(":")
        if not port.isdecimal() or int(port) > 65_535:
            raise OSError(f"'{listen}' is no address to listen at; write [ADDRESS:]PORT or unix:PATH")
        address = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
        return await asyncio.get_running_loop().create_server(self._protocol, address, int(port))

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=MAX_DATA)
        return asyncio.StreamReaderProtocol(reader, self._accept)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except VmTokenError as error:
            print(f"vmtoken: {error.message} [{error.reason}]", file=sys.stderr)
            writer.transport.abort()
        except (ConnectionError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnel = await self._agent.tunnel(self._request, self._timeout)
        sending = asyncio.create_task(_send(reader, tunnel))
        try:
            while data := await tunnel.read():
                writer.write(data)
                await writer.drain()
            writer.write_eof()
            await sending
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, VmTokenError, ConnectionError):
                await sending
            tunnel.cancel()


async def _send(reader: asyncio.StreamReader, tunnel: Tunnel) -> None:
    while data := await reader.read(MAX_DATA):
        await tunnel.write(data)
    await tunnel.end_write()


def _remove_socket(listen: str) -> None:
    if listen.startswith("unix:"):
        Path(listen.removeprefix("unix:")).unlink(missing_ok=True)


def _address(server: asyncio.Server, listen: str) -> str:
    address = server.sockets[0].getsockname()
    if isinstance(address, str) or listen.startswith("unix:"):
        return listen
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
