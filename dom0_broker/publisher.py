"""vmtoken-domains: tells a broker in a domain of its own which domains there are, and them where it is.

A domain may not see the others. This helper in dom0 writes what a broker has to know below the home of the
broker's domain, and the domid of the broker below the homes of all others: nodes that dom0 owns and that one
domain each can read. It knows no keys, takes no requests, and talks to nobody but xenstore.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from dom0_broker.live_domains import BROKER_DOMID, PUBLISHED, LiveDomain, ToolstackDirectory, follow
from vmtoken import log as logs
from vmtoken.notify import notify
from vmtoken.transport.xenstore import Xenstore
from vmtoken.transport.xenstore_wire import Access, Permission
from vmtoken.version import VERSION

log = logging.getLogger(__name__)

RECONNECT: Final = 2.0
"""Seconds between tries to reach xenstore again."""


class Publisher:
    """Keeps what is published as it should be, for the broker's domain known by name or UUID."""

    def __init__(self, store: Xenstore, broker: str) -> None:
        self._store = store
        self._broker = broker
        self._directory = ToolstackDirectory(store)
        self._broker_domid: int | None = None

    async def run(self) -> None:
        """Until cancelled. Raises `OSError` when xenstore is lost."""
        changes: asyncio.Queue[list[LiveDomain]] = asyncio.Queue()
        watching = asyncio.create_task(follow(self._directory, changes.put_nowait))
        watching.add_done_callback(lambda _: changes.put_nowait([]))
        try:
            while not watching.done():
                await self.publish(await changes.get())
            await watching
        finally:
            watching.cancel()

    async def publish(self, domains: Sequence[LiveDomain]) -> None:
        """Make xenstore say what these domains are. One that goes meanwhile is left to the next call."""
        broker = next((each for each in domains if self._broker in (each.name, str(each.uuid))), None)
        if (broker.domid if broker else None) != self._broker_domid:
            self._broker_domid = broker.domid if broker else None
            log.info("broker's domain", extra={"domid": self._broker_domid})
        if broker is None:
            return
        others = [each for each in domains if each is not broker]
        await self._forget(broker.domid, {str(each.domid) for each in others})
        for path, value, reader in _nodes(broker, others):
            await self._write(path, value, reader)

    async def _forget(self, broker_domid: int, living: set[str]) -> None:
        published = f"/local/domain/{broker_domid}/{PUBLISHED}"
        await self._write(published, b"", broker_domid)
        for child in await self._store.directory(published):
            if child not in living:
                await self._store.remove(f"{published}/{child}")

    async def _write(self, path: str, value: bytes, reader: int) -> None:
        """Readable for one domain and writable for dom0 alone before the value is there."""
        wanted = [Access(Permission.NONE, 0), Access(Permission.READ, reader)]
        try:
            if await self._store.read(path) == value and await self._store.permissions(path) == wanted:
                return
        except FileNotFoundError:
            await self._store.make_directory(path)
        await self._store.set_permissions(path, wanted)
        await self._store.write(path, value)


def _nodes(broker: LiveDomain, others: Sequence[LiveDomain]) -> Iterator[tuple[str, bytes, int]]:
    """Path, value and the domain that may read it. Where the broker is comes first: then it may serve."""
    for each in others:
        yield f"/local/domain/{each.domid}/{BROKER_DOMID}", str(broker.domid).encode(), each.domid
        path = f"/local/domain/{broker.domid}/{PUBLISHED}/{each.domid}"
        yield path, f"{each.uuid} {each.name}".encode(), broker.domid


def main(argv: Sequence[str] | None = None) -> int:
    """Run until killed; 1 when xenstore cannot be reached at the start."""
    arguments = _parser().parse_args(argv)
    logs.set_up("info", as_json=False)
    try:
        asyncio.run(_serve(arguments.to))
    except OSError as error:
        print(f"vmtoken-domains: {error.strerror or error}", file=sys.stderr)  # noqa: T201  # instead of the log
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmtoken-domains", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vmtoken-domains {VERSION}")
    parser.add_argument("--to", required=True, metavar="DOMAIN", help="name or UUID of the broker's domain")
    return parser


async def _serve(broker: str) -> None:
    store = await Xenstore.connect()
    notify("READY=1")
    while True:
        try:
            await Publisher(store, broker).run()
        except OSError as error:
            log.warning("nothing is published", extra={"because": str(error)})
        store.close()
        await asyncio.sleep(RECONNECT)
        store = await Xenstore.connect()


if __name__ == "__main__":
    sys.exit(main())
