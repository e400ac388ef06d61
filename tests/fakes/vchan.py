"""libxenvchan and the hypervisor under it, in memory: rings, notifications that have to be armed, grants.

Behaves as libxenvchan 4.17 does on Xen 4.17: the logic of rings and notifications is that of io.c and init.c.
The shared page is open to tests, since a hostile guest can write what it likes into it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field

from tests.fakes.xenstored import FakeXenstored
from vmtoken.transport.libxenvchan import VchanClosed, VchanState
from vmtoken.transport.xenstore_wire import Access, Permission

_WRITE, _READ = 1, 2
"""VCHAN_NOTIFY_WRITE, VCHAN_NOTIFY_READ: tell me when you have written, when you have read."""


@dataclass(slots=True)
class Ring:
    capacity: int
    octets: bytearray = field(default_factory=bytearray)
    consumer: int = 0
    producer: int = 0

    @property
    def ready(self) -> int:
        ready = (self.producer - self.consumer) % (1 << 32)
        return ready if ready <= self.capacity else 0

    @property
    def space(self) -> int:
        space = self.capacity - (self.producer - self.consumer) % (1 << 32)
        return space if 0 <= space <= self.capacity else 0

    @property
    def overrun(self) -> bool:
        return (self.producer - self.consumer) % (1 << 32) > self.capacity


@dataclass(slots=True)
class Page:
    """What both ends share."""

    server_domid: int
    client_domid: int
    to_server: Ring
    to_client: Ring
    server_live: int = 1
    client_live: int = 2
    server_notify: int = _WRITE
    client_notify: int = _WRITE
    server: FakeVchan | None = None
    client: FakeVchan | None = None


class FakeHypervisor:
    """Grants and event channels between the domains of one store.

    hypervisor.machine(0).open_server(7, path, read_size=4096, write_size=4096)
    hypervisor.machine(7).open_client(0, path)
    """

    def __init__(self, store: FakeXenstored) -> None:
        self.store = store
        self.pages: dict[str, Page] = {}
        self.opened = 0
        """Servers ever opened."""

        self.ends: set[FakeVchan] = set()
        """Ends that are not closed: what a leak would leave behind."""

    def machine(self, domid: int) -> Machine:
        return Machine(self, domid)


@dataclass(frozen=True, slots=True)
class Machine:
    """The library as one domain has it."""

    hypervisor: FakeHypervisor
    domid: int

    def open_server(self, domid: int, path: str, *, read_size: int, write_size: int) -> FakeVchan:
        hypervisor = self.hypervisor
        if domid and f"/local/domain/{domid}" not in hypervisor.store.nodes:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), path)
        page = Page(self.domid, domid, Ring(read_size), Ring(write_size))
        page.server = FakeVchan(self, path, page, is_server=True)
        hypervisor.pages[path] = page
        hypervisor.opened += 1
        permissions = [Access(Permission.NONE, self.domid), Access(Permission.READ, domid)]
        for leaf in ("ring-ref", "event-channel"):
            hypervisor.store.write(self.domid, f"{path}/{leaf}", b"8")
            hypervisor.store.nodes[f"{path}/{leaf}"].permissions = list(permissions)
            hypervisor.store.fire(f"{path}/{leaf}")
        return page.server

    def open_client(self, domid: int, path: str) -> FakeVchan:
        own_domid = self.hypervisor.store.present_domid(self.domid)
        node = self.hypervisor.store.nodes.get(f"{path}/event-channel")
        if node is None or not node.allows(own_domid, "rb"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        page = self.hypervisor.pages.get(path)
        if page is None or page.client is not None or page.client_domid != own_domid or not page.server_live:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        page.client = FakeVchan(self, path, page, is_server=False)
        page.client_live = 1
        page.server_notify = _WRITE
        page.client.notify()
        return page.client


class FakeVchan:
    """One end."""

    def __init__(self, machine: Machine, path: str, page: Page, *, is_server: bool) -> None:
        self.page = page
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._machine = machine
        self._path = path
        self._is_server = is_server
        self._closed = False
        self.taken = 0
        """Notifications that this end has taken."""

        machine.hypervisor.ends.add(self)

    @property
    def state(self) -> VchanState:
        if self._closed:
            raise VchanClosed
        live = self.page.client_live if self._is_server else self.page.server_live
        match live:
            case 0:
                return VchanState.CLOSED
            case 1:
                return VchanState.BROKEN if self._incoming.overrun else VchanState.OPEN
            case 2 if self._is_server:
                return VchanState.WAITING
            case _:
                return VchanState.BROKEN

    @property
    def used(self) -> bool:
        return bool(self._incoming.consumer or self._outgoing.producer)

    def acknowledge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.event)
            self.taken += 1

    def read(self, size: int) -> bytes:
        ring = self._incoming
        if ring.ready < size:
            self._request(_WRITE)
        count = min(ring.ready, size)
        if not count:
            if self.state is VchanState.CLOSED:
                raise VchanClosed
            return b""
        data = bytes(ring.octets[:count])
        del ring.octets[:count]
        ring.consumer = (ring.consumer + count) % (1 << 32)
        self._send_notify(_READ)
        return data

    def write(self, data: bytes | bytearray | memoryview) -> int:
        if self.state is VchanState.CLOSED:
            raise VchanClosed
        ring = self._outgoing
        if ring.space < len(data):
            self._request(_READ)
        count = min(ring.space, len(data))
        if count:
            ring.octets += data[:count]
            ring.producer = (ring.producer + count) % (1 << 32)
            self._send_notify(_WRITE)
        return count

    def close(self) -> None:
        self._leave(clean=True)

    def kill(self) -> None:
        """The process was killed: the kernel clears the octet and notifies, xenstore stays as it was."""
        self._leave(clean=False)

    def notify(self) -> None:
        """What a guest may also do for nothing, as often as it likes."""
        other = self.page.client if self._is_server else self.page.server
        if other is not None and not other._closed:
            os.eventfd_write(other.event, 1)

    def vanish(self) -> None:
        """The whole domain is gone: the other end hears nothing."""
        self._closed = True
        os.close(self.event)
        self._machine.hypervisor.ends.discard(self)

    def _leave(self, *, clean: bool) -> None:
        if self._closed:
            return
        if self._is_server:
            self.page.server_live = 0
        else:
            self.page.client_live = 0
            self.page.client = None
        if self._is_server or self.page.server is not None:
            self._notify_leaving()
        self.vanish()
        hypervisor = self._machine.hypervisor
        if self._is_server and clean:
            if hypervisor.pages.get(self._path) is self.page:
                del hypervisor.pages[self._path]
            if self._path in hypervisor.store.nodes:
                hypervisor.store.remove(self._path)

    def _notify_leaving(self) -> None:
        other = self.page.client if self._is_server else self.page.server
        if other is not None and not other._closed:
            os.eventfd_write(other.event, 1)

    @property
    def _incoming(self) -> Ring:
        return self.page.to_server if self._is_server else self.page.to_client

    @property
    def _outgoing(self) -> Ring:
        return self.page.to_client if self._is_server else self.page.to_server

    def _request(self, bit: int) -> None:
        if self._is_server:
            self.page.client_notify |= bit
        else:
            self.page.server_notify |= bit

    def _send_notify(self, bit: int) -> None:
        wanted = self.page.server_notify if self._is_server else self.page.client_notify
        if self._is_server:
            self.page.server_notify &= ~bit
        else:
            self.page.client_notify &= ~bit
        if wanted & bit:
            self.notify()
