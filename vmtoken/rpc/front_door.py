"""The front door: knows who is at the other end of a connection, and leads it to a server of its own.

gRPC in Python tells a service nothing about the peer of a socket and takes no accepted
descriptor. So the door accepts, asks `identify`, and splices the bytes to the private gRPC
server of that one caller. A service behind the door never has to ask who is calling.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeVar

from vmtoken.transport.relay import SpliceEnd

log = logging.getLogger(__name__)

Caller = TypeVar("Caller")


class Unwelcome(Exception):
    """The caller is unknown or not allowed in; the message says why, for the log."""


class FrontDoor(Generic[Caller]):
    """Leads connections to the private server of whoever is calling.

    `identify` learns the caller from an accepted transport; `server_of` gives the Unix socket of that
    caller's gRPC server, starting it if need be. Both raise `Unwelcome` to refuse. `protocol` is
    the factory for `create_unix_server`, `create_server` or any other listener of transports.
    """

    def __init__(
        self,
        identify: Callable[[asyncio.BaseTransport], Caller],
        server_of: Callable[[Caller], Awaitable[Path]],
    ) -> None:
        self._identify = identify
        self._server_of = server_of
        self._visits: dict[asyncio.Task[None], tuple[Caller, SpliceEnd]] = {}

    def protocol(self) -> asyncio.Protocol:
        """The protocol for one accepted connection."""
        return _Visitor(self)

    @property
    def visitors(self) -> int:
        """How many connections are open."""
        return len(self._visits)

    @property
    def callers(self) -> list[Caller]:
        """Whose connections are open."""
        return [caller for caller, _ in self._visits.values()]

    def turn_out(self, caller: Caller) -> None:
        """Close every connection of a caller who is no longer welcome."""
        for visit, (who, _) in list(self._visits.items()):
            if who == caller:
                visit.cancel()

    async def close(self) -> None:
        """Close every connection."""
        visits = list(self._visits)
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)

    def enter(self, visitor: SpliceEnd) -> None:
        """Somebody is at the door."""
        assert visitor.transport is not None
        try:
            caller = self._identify(visitor.transport)
        except Unwelcome as refusal:
            log.warning("connection refused", extra={"because": str(refusal)})
            visitor.transport.abort()
            return
        visit = asyncio.get_running_loop().create_task(self._lead(caller, visitor))
        self._visits[visit] = (caller, visitor)
        visit.add_done_callback(self._visits.pop)

    async def _lead(self, caller: Caller, visitor: SpliceEnd) -> None:
        server: SpliceEnd | None = None
        try:
            path = await self._server_of(caller)
            _, server = await asyncio.get_running_loop().create_unix_connection(SpliceEnd, str(path))
            visitor.join(server)
            await asyncio.wait([visitor.closed, server.closed])
        except (Unwelcome, OSError) as refusal:
            log.warning("connection refused", extra={"because": str(refusal)})
        except asyncio.CancelledError:
            if visitor.transport is not None:
                visitor.transport.abort()  # turned out: not even the end of TLS is waited for
            raise
        finally:
            visitor.close()
            if server is not None:
                server.close()


class _Visitor(SpliceEnd):
    def __init__(self, door: FrontDoor[Caller]) -> None:
        super().__init__()
        self._enter = door.enter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._enter(self)
