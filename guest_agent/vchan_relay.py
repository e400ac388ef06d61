"""The way of gRPC to a broker over vchan: a private Unix socket whose bytes go through the channel.

gRPC in Python takes no transport of ours. So it connects here, and each connection gets the vchan for itself,
one after the other. A connection made while the broker is away waits for it: the agent is back within
milliseconds after the broker's nodes appear in xenstore.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guest_agent.config import VchanLink
from vmtoken.transport import libxenvchan
from vmtoken.transport.relay import SpliceEnd
from vmtoken.transport.vchan import OpenClient, VchanTransport, connect, link_path
from vmtoken.transport.xenstore import Xenstore

log = logging.getLogger(__name__)

BROKER_DOMID: Final = "vmtoken/broker-domid"
"""Below our home in xenstore, written by dom0 when the broker is in another domain; see
docs/install-xen.md."""

LOOK_AGAIN: Final = 5.0
"""Seconds after which we ask again where the broker is."""

_BACKLOG: Final = 4
"""gRPC opens one connection, and a next one when that is lost."""


@dataclass(frozen=True, slots=True)
class Xen:
    """What is below: xenstore and the library."""

    connect: Callable[[], Awaitable[Xenstore]] = Xenstore.connect
    open_client: OpenClient = libxenvchan.open_client


class VchanRelay:
    """Made inside a running event loop; gRPC can connect to `path` at once. Raises `OSError`."""

    def __init__(self, link: VchanLink, xen: Xen | None = None) -> None:
        self._link = link
        self._xen = xen or Xen()
        self._directory = Path(tempfile.mkdtemp(prefix="vmtoken-", dir=os.environ.get("RUNTIME_DIRECTORY")))
        self.path = self._directory / "broker.sock"
        self._visits: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._complaint = ""
        self._serving = asyncio.ensure_future(self._serve(_listening(self.path)))

    async def close(self) -> None:
        """End the socket and the channel."""
        server = await self._serving
        server.close()
        for visit in list(self._visits):
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _serve(self, listener: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_unix_server(
            lambda: _Visitor(self._enter), sock=listener
        )

    def _enter(self, visitor: SpliceEnd) -> None:
        visit = asyncio.get_running_loop().create_task(self._visit(visitor))
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _visit(self, visitor: SpliceEnd) -> None:
        """Until either end is gone."""
        lead = asyncio.ensure_future(self._lead(visitor))
        try:
            await asyncio.wait([lead, visitor.closed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            visitor.close()
            lead.cancel()
            await asyncio.wait([lead])
            self._complain("" if lead.cancelled() else str(lead.exception() or ""))

    def _complain(self, because: str) -> None:
        """Once for each reason: gRPC tries again every two seconds."""
        if because not in ("", self._complaint):
            log.warning("no link to the broker", extra={"because": because})
        self._complaint = because

    async def _lead(self, visitor: SpliceEnd) -> None:
        """The next connection has to wait until this one has given its channel back. Raises `OSError`."""
        async with self._one_at_a_time:
            transport, end = await self._dial()
            visitor.join(end)
            try:
                await asyncio.shield(transport.closed)
            finally:
                transport.close()
                await transport.given_back()

    async def _dial(self) -> tuple[VchanTransport, SpliceEnd]:
        """As soon as the broker serves us. Where it is may change while we wait, and which domain we are."""
        store = await self._xen.connect()
        try:
            while True:
                domid = await self._broker_domid(store)
                path = link_path(domid, await store.own_domid())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN):
                        return await connect(SpliceEnd, domid, path, store, open_client=self._xen.open_client)
        finally:
            store.close()

    async def _broker_domid(self, store: Xenstore) -> int:
        if self._link.domid is not None:
            return self._link.domid
        with contextlib.suppress(FileNotFoundError, PermissionError, ValueError):
            return int(await store.read_text(BROKER_DOMID))
        return 0


class _Visitor(SpliceEnd):
    def __init__(self, enter: Callable[[SpliceEnd], None]) -> None:
        super().__init__()
        self._enter = enter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._enter(self)


def _listening(path: Path) -> socket.socket:
    """In a directory that only our own user can enter."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.fspath(path))
    listener.listen(_BACKLOG)
    return listener
