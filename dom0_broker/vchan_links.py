"""Links over vchan: a server for every domain that is a VM of ours, as long as the domain lives.

The hypervisor sees to it that only domain N is at the other end of a channel made for domain N. Which VM
domain N is comes from the toolstack (`dom0_broker.live_domains`). Two domains with one UUID are one too many:
the first keeps the link, the other gets none until the first is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dom0_broker.audit import AuditNotes
from dom0_broker.domains import DomainIdentity
from dom0_broker.live_domains import (
    Directory,
    LiveDomain,
    PublishedDirectory,
    ToolstackDirectory,
    follow,
    one_of_each,
)
from vmtoken.rpc.front_door import FrontDoor, Unwelcome
from vmtoken.transport import libxenvchan
from vmtoken.transport.vchan import OpenServer, RingSizes, VchanViolation, link_path, links_path, serve
from vmtoken.transport.xenstore import Xenstore

log = logging.getLogger(__name__)

RECONNECT: Final = 2.0
"""Seconds between tries to reach xenstore again."""

GIVE_BACK: Final = 1.0
"""Seconds that an agent gets to close its end of a link that was ended: it needs milliseconds."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A VM in the domain that it has now: who is at the other end of a vchan."""

    vm: DomainIdentity
    domid: int


@dataclass(frozen=True, slots=True)
class Xen:
    """What is below: xenstore and the library."""

    connect: Callable[[], Awaitable[Xenstore]] = Xenstore.connect
    open_server: OpenServer = libxenvchan.open_server


class VchanLinks:
    """The vchans of all VMs. Used from the event loop."""

    def __init__(
        self,
        sizes: RingSizes,
        vms: Callable[[], list[DomainIdentity]],
        private_socket_of: Callable[[DomainIdentity], Awaitable[Path]],
        notes: AuditNotes,
        xen: Xen,
    ) -> None:
        self._sizes = sizes
        self._vms = vms
        self._private_socket_of = private_socket_of
        self._notes = notes
        self._xen = xen
        self._door: FrontDoor[Resident] = FrontDoor(self._identify, self._server_of)
        self._own_domid = 0
        self._directory: Directory | None = None
        self._domains: list[LiveDomain] = []
        self.doubles: list[LiveDomain] = []
        """Domains that have the UUID of another one that is served."""

        self._impostors: set[LiveDomain] = set()
        self._serving: dict[Resident, asyncio.Task[None]] = {}
        self._unlinked: set[Resident] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._accepting = True

    async def open(self) -> None:
        """Watch domains from now on. Raises `OSError` when xenstore cannot be reached."""
        store = await self._xen.connect()
        self._own_domid = await store.own_domid()
        await store.remove(links_path(self._own_domid))  # what a broker that was killed left behind
        self._watching = asyncio.create_task(self._watch(store))

    def domid(self, vm: DomainIdentity) -> int | None:
        """The domain that a VM has now."""
        return next((each.domid for each in self._residents if each.vm.uuid == vm.uuid), None)

    def connected(self, vm: DomainIdentity) -> bool:
        """Whether the agent of a VM is at the other end of its vchan."""
        return any(caller.vm.uuid == vm.uuid for caller in self._door.callers)

    def unlinked(self, vm: DomainIdentity) -> bool:
        """Whether the domain that a VM has now was unlinked."""
        return any(each.vm.uuid == vm.uuid for each in self._unlinked)

    async def unlink(self, vm: DomainIdentity) -> None:
        """End the link of a VM until it has another domain, or `link`."""
        self._unlinked |= {each for each in self._serving if each.vm.uuid == vm.uuid}
        self.reconsider()
        await self.settled()
        await asyncio.sleep(GIVE_BACK)

    def link(self, vm: DomainIdentity) -> None:
        """Take `unlink` back."""
        self._unlinked = {each for each in self._unlinked if each.vm.uuid != vm.uuid}
        self.reconsider()

    def reconsider(self) -> None:
        """VMs have become known, or were forgotten: serve those whose domain runs, and no others."""
        known = {vm.uuid: vm for vm in self._vms()}
        held = {resident.vm.uuid: resident.domid for resident in self._residents}
        chosen, doubles = one_of_each(self._domains, held)
        present = {Resident(known[each.uuid], each.domid) for each in chosen if each.uuid in known}
        self._unlinked &= present
        wanted = present - self._unlinked
        for resident in self._serving.keys() - wanted:
            self._end(resident)
        for resident in sorted(wanted - self._serving.keys(), key=lambda each: each.domid):
            self._begin(resident)
        self._tell_doubles([each for each in doubles if each.uuid in known])
        self._tell_impostors({vm.name: vm for vm in known.values()}, known.keys())

    def stop_accepting(self) -> None:
        """Let nobody in any more; those who are in stay."""
        self._accepting = False

    async def close(self) -> None:
        """End every link; when this returns there are no nodes of ours in xenstore."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        for resident in list(self._serving):
            self._end(resident)
        await self.settled()
        await self._door.close()

    async def settled(self) -> None:
        """Wait until links that end have ended."""
        while self._ending:
            await asyncio.wait(list(self._ending))

    @property
    def _residents(self) -> set[Resident]:
        return self._unlinked | self._serving.keys()

    async def _watch(self, store: Xenstore) -> None:
        """As long as the broker runs: xenstore may be lost, and links that are open do not need it."""
        while True:
            try:
                self._directory = self._directory_in(store)
                await follow(self._directory, self._changed)
            except OSError as error:
                log.error("domains are not watched", extra={"because": str(error)})  # noqa: TRY400
            finally:
                store.close()
            store = await self._reconnected()

    async def _reconnected(self) -> Xenstore:
        while True:
            await asyncio.sleep(RECONNECT)
            with contextlib.suppress(OSError):
                return await self._xen.connect()

    def _directory_in(self, store: Xenstore) -> Directory:
        if self._own_domid == 0:
            return ToolstackDirectory(store)
        return PublishedDirectory(store)

    def _changed(self, domains: list[LiveDomain]) -> None:
        self._domains = domains
        self.reconsider()

    def _begin(self, resident: Resident) -> None:
        vm, domid = resident.vm, resident.domid

        def violated(violation: VchanViolation) -> None:
            log.warning("vchan violated", extra={"vm": vm.name, "domid": domid, "because": str(violation)})
            self._notes.add("link-violation", _fields(vm, domid) | {"because": str(violation)})

        link = serve(
            domid,
            link_path(self._own_domid, domid),
            self._door.protocol,
            sizes=self._sizes,
            violated=violated,
            open_server=self._xen.open_server,
        )
        self._serving[resident] = task = asyncio.create_task(link)
        task.add_done_callback(_complain)
        self._notes.add("domain-appeared", _fields(vm, domid))
        log.info("domain appeared", extra={"vm": vm.name, "domid": domid})

    def _end(self, resident: Resident) -> None:
        task = self._serving.pop(resident)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()
        self._notes.add("domain-gone", _fields(resident.vm, resident.domid))
        log.info("domain gone", extra={"vm": resident.vm.name, "domid": resident.domid})

    def _tell_doubles(self, doubles: list[LiveDomain]) -> None:
        for double in doubles:
            if double not in self.doubles:
                because = "another domain has its UUID and runs"
                self._refused(double, because)
        self.doubles = doubles

    def _tell_impostors(self, by_name: dict[str, DomainIdentity], known: Collection[uuid.UUID]) -> None:
        """A VM's name with another UUID: most likely its configuration has no `uuid=` and one was made up."""
        impostors = {each for each in self._domains if each.name in by_name and each.uuid not in known}
        for each in impostors - self._impostors:
            vm = by_name[each.name]
            self._refused(each, f"it has the name of VM '{vm.name}', but not its UUID {vm.uuid}")
        self._impostors = impostors

    def _refused(self, domain: LiveDomain, because: str) -> None:
        facts: dict[str, str | int] = {
            "domid": domain.domid,
            "uuid": str(domain.uuid),
            "name": domain.name,
            "because": because,
        }
        log.warning("domain refused", extra={"domid": domain.domid, "because": because})
        self._notes.add("domain-refused", facts)

    def _identify(self, transport: asyncio.BaseTransport) -> Resident:
        domid = transport.get_extra_info("domid")
        resident = next((each for each in self._serving if each.domid == domid), None)
        if resident is None:
            raise Unwelcome(f"domain {domid} is no VM of ours")
        if not self._accepting:
            raise Unwelcome("the broker stops")
        return resident

    async def _server_of(self, resident: Resident) -> Path:
        """Looks once more: a domid could have been given to another domain since the channel was made."""
        assert self._directory is not None, "there was a domain to serve"
        domain = await self._directory.domain(resident.domid)
        if domain is None or domain.uuid != resident.vm.uuid:
            raise Unwelcome(f"domain {resident.domid} is not VM '{resident.vm}' any more")
        return await self._private_socket_of(resident.vm)


def _complain(task: asyncio.Task[None]) -> None:
    """A link ends by being cancelled and in no other way."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a vchan is not served any more", exc_info=error)


def _fields(vm: DomainIdentity, domid: int) -> dict[str, str | int]:
    return {"vm": vm.name, "vm_uuid": str(vm.uuid), "domid": domid}
