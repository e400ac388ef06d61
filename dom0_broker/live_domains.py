"""Which domains run now and which VM each of them is, as the toolstack wrote it into xenstore.

A VM is known by the UUID of its domain: `/local/domain/DOMID/vm` names the path `/vm/UUID`, and only dom0 can
write there, which is looked at, not assumed. What lies under that path is not read: libxl removes it with the
first of two domains that have one UUID. In a service domain, which may not read this, a helper in dom0
publishes the same (`dom0_broker.publisher`).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from dom0_broker.domains import parsed_uuid
from vmtoken.transport.xenstore import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Xenstore
from vmtoken.transport.xenstore_wire import Permission

log = logging.getLogger(__name__)

PUBLISHED: Final = "vmtoken/domains"
"""Below a service domain's own home: a node a domain, its value `UUID NAME`."""

BROKER_DOMID: Final = "vmtoken/broker-domid"
"""Below a VM's home: the domain that its broker is in, when that is not dom0."""

_TOOLSTACK: Final = 0
"""The domain that may write who is who."""


@dataclass(frozen=True, slots=True)
class LiveDomain:
    """A domain that runs, or is being built or taken down. The name is for people."""

    domid: int
    uuid: uuid.UUID
    name: str


class Directory(Protocol):
    """Where one can see which domains there are."""

    async def follow(self, changed: Callable[[], None]) -> None:
        """Call `changed` once, whenever a domain may have come or gone, and when xenstore is lost."""
        ...

    async def domains(self) -> list[LiveDomain]:
        """All of them but our own, by domid. Raises `OSError`."""
        ...

    async def domain(self, domid: int) -> LiveDomain | None:
        """The domain of this domid now, if there is one. Raises `OSError`."""
        ...


class ToolstackDirectory:
    """What dom0 sees."""

    def __init__(self, store: Xenstore, own_domid: int = 0) -> None:
        self._store = store
        self._own_domid = own_domid

    async def follow(self, changed: Callable[[], None]) -> None:
        """Raises `OSError`."""
        for special in (INTRODUCE_DOMAIN, RELEASE_DOMAIN):
            await self._store.watch(special, lambda _: changed())
        self._store.lost.add_done_callback(lambda _: changed())

    async def domains(self) -> list[LiveDomain]:
        """Raises `OSError`."""
        children = await self._store.directory("/local/domain")
        domids = sorted(int(child) for child in children if child.isdecimal())
        found = [await self.domain(domid) for domid in domids if domid != self._own_domid]
        return [domain for domain in found if domain is not None]

    async def domain(self, domid: int) -> LiveDomain | None:
        """None for one that is half built, half gone, or not described by the toolstack alone."""
        home = f"/local/domain/{domid}"
        try:
            vm = await self._trusted(f"{home}/vm")
            name = await self._store.read_text(f"{home}/name")
        except (FileNotFoundError, PermissionError):
            return None
        number = parsed_uuid(vm.removeprefix("/vm/")) if vm.startswith("/vm/") else None
        return None if number is None else LiveDomain(domid, number, name)

    async def _trusted(self, path: str) -> str:
        """A value that only the toolstack can have written. Raises `PermissionError` if others could."""
        owner, *others = await self._store.permissions(path)
        writers = [each.domid for each in others if each.permission in (Permission.WRITE, Permission.BOTH)]
        if owner.domid != _TOOLSTACK or owner.permission in (Permission.WRITE, Permission.BOTH) or writers:
            log.warning("a node that names a VM can be written by a guest", extra={"path": path})
            raise PermissionError(f"{path} can be written by others than the toolstack")
        return await self._store.read_text(path)


class PublishedDirectory:
    """What a service domain sees: what the helper in dom0 publishes."""

    def __init__(self, store: Xenstore) -> None:
        self._store = store

    async def follow(self, changed: Callable[[], None]) -> None:
        """Raises `OSError`."""
        await self._store.watch(PUBLISHED, lambda _: changed())
        self._store.lost.add_done_callback(lambda _: changed())

    async def domains(self) -> list[LiveDomain]:
        """Raises `OSError`."""
        try:
            children = await self._store.directory(PUBLISHED)
        except (FileNotFoundError, PermissionError):
            return []  # nothing is published yet
        domids = sorted(int(child) for child in children if child.isdecimal())
        found = [await self.domain(domid) for domid in domids]
        return [domain for domain in found if domain is not None]

    async def domain(self, domid: int) -> LiveDomain | None:
        """None when nothing is published of it."""
        try:
            text = await self._store.read_text(f"{PUBLISHED}/{domid}")
        except (FileNotFoundError, PermissionError):
            return None
        number, _, name = text.partition(" ")
        parsed = parsed_uuid(number)
        return None if parsed is None else LiveDomain(domid, parsed, name)


def one_of_each(
    domains: Sequence[LiveDomain], held: Mapping[uuid.UUID, int]
) -> tuple[list[LiveDomain], list[LiveDomain]]:
    """One domain of each UUID, and those that are one too many.

    `held` says which domid has a UUID already: it keeps it while it lives. Else the oldest domain gets it.
    """
    holders: dict[uuid.UUID, LiveDomain] = {}
    for domain in sorted(domains, key=lambda each: (held.get(each.uuid) != each.domid, each.domid)):
        holders.setdefault(domain.uuid, domain)
    chosen = [domain for domain in domains if holders[domain.uuid] is domain]
    return chosen, [domain for domain in domains if domain not in chosen]


async def follow(directory: Directory, changed: Callable[[list[LiveDomain]], None]) -> None:
    """Call `changed` with all domains, now and after each change, until cancelled. Raises `OSError`."""
    due = asyncio.Event()
    await directory.follow(due.set)
    while True:
        await due.wait()
        due.clear()
        changed(await directory.domains())
