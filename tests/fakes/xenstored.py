"""A xenstored on Unix sockets: nodes with permissions, watches, domains that come and go.

Each domain has a socket of its own, as the kernel's device gives each domain a connection of its own. Behaves
as measured on xenstored 4.17; transactions and quotas are left out, since nothing here uses them.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from vmtoken.transport.xenstore_wire import (
    MAX_PAYLOAD,
    Access,
    Decoder,
    Message,
    MessageType,
    Permission,
    names,
    split_names,
)


@dataclass(slots=True)
class Node:
    value: bytes = b""
    permissions: list[Access] = field(default_factory=lambda: [Access(Permission.NONE, 0)])

    def owner(self) -> int:
        return self.permissions[0].domid

    def allows(self, domid: int, letters: str) -> bool:
        if domid in (0, self.owner()):
            return True
        named = [entry.permission for entry in self.permissions[1:] if entry.domid == domid]
        return (named or [self.permissions[0].permission])[0] in letters


class Refused(Exception):
    """The answer is an error of this name."""


class FakeXenstored:
    """A store that dom0's toolstack and every domain can connect to.

    store = FakeXenstored(directory)
    domid = store.create_domain("web01", uuid)      # as `xl create` does; fires @introduceDomain
    client = await Xenstore.connect([await store.socket(0)])
    store.destroy_domain(domid)                     # fires @releaseDomain
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self.nodes = {"/": Node(), "/tool": Node(), "@introduceDomain": Node(), "@releaseDomain": Node()}
        self._connections: set[_Connection] = set()
        self._servers: dict[int, asyncio.Server] = {}
        self._last_domid = 0
        self._restored: dict[int, int] = {}
        self.silent = False
        """Takes requests and answers none, as a daemon that hangs."""

        self.toolstack_write("/local/domain/0/domid", b"0")

    async def socket(self, domid: int = 0) -> Path:
        """Where a domain connects."""
        path = self._directory / f"xenstored-{domid}"
        if domid not in self._servers:
            loop = asyncio.get_running_loop()
            server = await loop.create_unix_server(lambda: _Connection(self, self.present_domid(domid)), path)
            self._servers[domid] = server
        return path

    async def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self.drop_connections()

    def drop_connections(self) -> None:
        """As when the daemon ends."""
        for connection in list(self._connections):
            connection.abort()

    def create_domain(self, name: str, number: uuid.UUID) -> int:
        """What libxl puts into the store for a domain, with its permissions."""
        self._last_domid += 1
        domid = self._last_domid
        for_guest = [Access(Permission.NONE, 0), Access(Permission.READ, domid)]
        home, vm = f"/local/domain/{domid}", f"/vm/{number}"
        for path, value in (
            (home, ""),
            (f"{home}/vm", vm),
            (f"{home}/name", name),
            (f"{home}/domid", str(domid)),
            (vm, ""),
            (f"{vm}/uuid", str(number)),
            (f"{vm}/name", name),
        ):
            self.toolstack_write(path, value.encode())
            self.nodes[path].permissions = list(for_guest)
        self.toolstack_write(f"{home}/data", b"")
        self.nodes[f"{home}/data"].permissions = [Access(Permission.NONE, domid)]
        self.fire("@introduceDomain")
        return domid

    def destroy_domain(self, domid: int, *, keep_vm: bool = False) -> None:
        """`keep_vm` when another domain has the same UUID, and with it this part of the store."""
        if not keep_vm:
            self.remove(self.nodes[f"/local/domain/{domid}/vm"].value.decode())
        self.remove(f"/local/domain/{domid}")
        self.fire("@releaseDomain")

    def restore_domain(self, domid: int, name: str, number: uuid.UUID) -> int:
        """A domain that was saved, and so destroyed, goes on with its programs under another domid."""
        self._restored[domid] = restored = self.create_domain(name, number)
        for connection in self._connections:
            if connection.domid == domid:
                connection.domid = restored
        return restored

    def present_domid(self, domid: int) -> int:
        """Of a domain that perhaps was restored."""
        return self._restored.get(domid, domid)

    def allow_writing(self, path: str, domid: int) -> None:
        """What no toolstack does."""
        self.nodes[path].permissions.append(Access(Permission.BOTH, domid))

    def toolstack_write(self, path: str, value: bytes) -> None:
        self.write(0, path, value)

    def write(self, domid: int, path: str, value: bytes | None) -> None:
        """None makes the node only. Fires for the node itself, not for parents that are made on the way."""
        node = self.nodes.get(path) or self._make(domid, path)
        if not node.allows(domid, "wb"):
            raise Refused("EACCES")
        if value is not None:
            node.value = value
        self.fire(path)

    def remove(self, path: str) -> None:
        for each in [each for each in self.nodes if each == path or each.startswith(path + "/")]:
            del self.nodes[each]
        self.fire(path, removed=True)

    def fire(self, path: str, *, removed: bool = False) -> None:
        """Any thread may."""
        self._loop.call_soon_threadsafe(self._fire, path, removed)

    def _fire(self, path: str, removed: bool) -> None:
        for connection in list(self._connections):
            connection.notice(path, removed=removed)

    def visible(self, domid: int, path: str) -> bool:
        """Whether a domain hears of a change of a node: it may read it, or what is left above it."""
        while path not in self.nodes and path != "/":
            path = path.rpartition("/")[0] or "/"
        return self.nodes[path].allows(domid, "rb")

    def _make(self, domid: int, path: str) -> Node:
        above = path.rpartition("/")[0] or "/"
        parent = self.nodes.get(above) or self._make(domid, above)
        if not parent.allows(domid, "wb"):
            raise Refused("EACCES")
        owner = Access(parent.permissions[0].permission, domid or parent.owner())
        self.nodes[path] = node = Node(b"", [owner, *parent.permissions[1:]])
        return node

    def connected(self, connection: _Connection) -> None:
        self._connections.add(connection)

    def disconnected(self, connection: _Connection) -> None:
        self._connections.discard(connection)


class _Connection(asyncio.Protocol):
    def __init__(self, store: FakeXenstored, domid: int) -> None:
        self._store = store
        self.domid = domid
        self._decoder = Decoder()
        self._watches: list[tuple[str, str]] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._store.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._store.disconnected(self)

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            if not self._store.silent:
                self._answer(message)

    def notice(self, path: str, *, removed: bool) -> None:
        for watched, token in self._watches:
            below = self._absolute(watched).rstrip("/") + "/"
            hit = path == self._absolute(watched) or path.startswith(below)
            if removed and below.startswith(path.rstrip("/") + "/"):
                hit = True  # what was above it is gone, and it with it
            if hit and self._store.visible(self.domid, path):
                shown = watched if not path.startswith(below) else watched + path[len(below) - 1 :]
                self._send(MessageType.WATCH_EVENT, 0, names(shown, token))

    def _answer(self, request: Message) -> None:
        try:
            payload = self._payload(request)
        except Refused as refusal:
            self._send(MessageType.ERROR, request.request_id, names(str(refusal)))
        else:
            self._send(request.type, request.request_id, payload)
            if request.type == MessageType.WATCH:
                self._send(MessageType.WATCH_EVENT, 0, request.payload)

    def _payload(self, request: Message) -> bytes:
        untrusted_path, _, rest = request.payload.partition(b"\0")
        path = self._absolute(untrusted_path.decode())
        match request.type:
            case MessageType.READ:
                return self._readable(path).value
            case MessageType.DIRECTORY:
                return self._children(path)
            case MessageType.DIRECTORY_PART:
                return b"1\0" + self._list(path)[int(rest[:-1]) :][: MAX_PAYLOAD - 32]
            case MessageType.GET_PERMS:
                return names(*map(str, self._readable(path).permissions))
            case MessageType.WRITE | MessageType.MKDIR:
                self._store.write(self.domid, path, rest if request.type == MessageType.WRITE else None)
            case MessageType.RM:
                if not self._existing(path).allows(self.domid, "wb"):
                    raise Refused("EACCES")
                self._store.remove(path)
            case MessageType.SET_PERMS:
                if self.domid not in (0, self._existing(path).owner()):
                    raise Refused("EACCES")
                self._existing(path).permissions = [Access.parse(entry) for entry in split_names(rest)]
                self._store.fire(path)
            case MessageType.WATCH:
                self._watches.append((untrusted_path.decode(), split_names(rest)[0]))
            case MessageType.UNWATCH:
                self._watches.remove((untrusted_path.decode(), split_names(rest)[0]))
            case _:
                raise Refused("ENOSYS")
        return b"OK\0"

    def _existing(self, path: str) -> Node:
        if "//" in path or not path:
            raise Refused("EINVAL")
        if path not in self._store.nodes:
            raise Refused("ENOENT" if self._store.visible(self.domid, path) else "EACCES")
        return self._store.nodes[path]

    def _readable(self, path: str) -> Node:
        node = self._existing(path)
        if not node.allows(self.domid, "rb"):
            raise Refused("EACCES")
        return node

    def _list(self, path: str) -> bytes:
        self._readable(path)
        prefix = path.rstrip("/") + "/"
        below = (each[len(prefix) :] for each in self._store.nodes if each.startswith(prefix))
        return names(*(each for each in below if each and "/" not in each)) + b"\0"

    def _children(self, path: str) -> bytes:
        listed = self._list(path)[:-1]
        if len(listed) > MAX_PAYLOAD:
            raise Refused("E2BIG")
        return listed

    def _absolute(self, path: str) -> str:
        return path if path.startswith(("/", "@")) else f"/local/domain/{self.domid}/{path}"

    def _send(self, kind: int, request_id: int, payload: bytes) -> None:
        assert self._transport is not None
        self._transport.write(Message(kind, request_id, payload).encode())
