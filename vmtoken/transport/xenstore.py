"""A client of xenstore: nodes, permissions and watches, from dom0 and from a domU.

In dom0 xenstored serves a Unix socket, anywhere the kernel carries the same messages over a device. One
request is under way at a time: the kernel answers a watch out of turn and with a request number of zero.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from vmtoken.transport.xenstore_wire import (
    MAX_PAYLOAD,
    Access,
    Decoder,
    Message,
    MessageType,
    XenstoreProtocolError,
    failure,
    names,
    split_names,
)

PLACES: Final = (Path("/run/xenstored/socket"), Path("/dev/xen/xenbus"), Path("/proc/xen/xenbus"))
"""Where libxenstore looks too, in this order; the first that our user may open is taken."""

INTRODUCE_DOMAIN: Final = "@introduceDomain"
RELEASE_DOMAIN: Final = "@releaseDomain"
"""Special watches: a domain has appeared, or one has shut down or is gone. They do not say which."""

ANSWER_WITHIN: Final = 10.0
"""Seconds: xenstored answers in less than a millisecond, or else the machine has lost its toolstack."""

_CHUNK: Final = 8192
"""Octets of one read; a message has at most 4112."""

Fired = Callable[[str], None]
"""What a watch calls with the path that changed; once right after it is set, too."""


class Xenstore:
    """A connection to xenstore. Methods raise `OSError`: `FileNotFoundError`, `PermissionError` and the like.

    A connection that is lost stays lost: `lost` is done then, every method raises `ConnectionError`.
    """

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._decoder = Decoder()
        self._turn = asyncio.Lock()
        self._request_id = 0
        self._answer: asyncio.Future[Message] | None = None
        self._watches: dict[str, Fired] = {}
        self._next_token = 0
        self._requests: set[asyncio.Task[bytes]] = set()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._receive)

    @classmethod
    async def connect(cls, places: Sequence[Path] = PLACES) -> Xenstore:
        """Connect to the first place that serves. Raises `OSError` that says what is wrong with each."""
        return cls(_open_first(places))

    async def read(self, path: str) -> bytes:
        """The value of a node."""
        return await self._request(MessageType.READ, path, names(path))

    async def read_text(self, path: str) -> str:
        """The value of a node as text; what is not UTF-8 in it is replaced."""
        return (await self.read(path)).decode("utf-8", "replace")

    async def own_domid(self) -> int:
        """The domain that we run in."""
        text = await self.read_text("domid")
        if not text.isdecimal():
            raise XenstoreProtocolError(f"xenstore gives '{text}' for our domid")
        return int(text)

    async def directory(self, path: str) -> list[str]:
        """The names of a node's children; long lists come in parts (XS_DIRECTORY_PART)."""
        try:
            return split_names(await self._request(MessageType.DIRECTORY, path, names(path)))
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
        return await self._directory_in_parts(path)

    async def exists(self, path: str) -> bool:
        """Whether there is a node that we may read."""
        try:
            await self.read(path)
        except (FileNotFoundError, PermissionError):
            return False
        return True

    async def write(self, path: str, value: bytes) -> None:
        """Set a node; it and its parents are made if need be, with the permissions of the parent."""
        await self._request(MessageType.WRITE, path, names(path) + value)

    async def make_directory(self, path: str) -> None:
        """Make a node without a value, if it is not there."""
        await self._request(MessageType.MKDIR, path, names(path))

    async def remove(self, path: str) -> None:
        """Remove a node and everything under it; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            await self._request(MessageType.RM, path, names(path))

    async def permissions(self, path: str) -> list[Access]:
        """The permissions of a node; the first names its owner."""
        entries = await self._request(MessageType.GET_PERMS, path, names(path))
        return [Access.parse(entry) for entry in split_names(entries)]

    async def set_permissions(self, path: str, permissions: Sequence[Access]) -> None:
        """Set the permissions of a node or of a special watch."""
        await self._request(MessageType.SET_PERMS, path, names(path, *map(str, permissions)))

    async def watch(self, path: str, fired: Fired) -> str:
        """Call `fired` at once and whenever the node or something under it changes; the token ends it."""
        token = f"vmtoken-{self._next_token}"
        self._next_token += 1
        self._watches[token] = fired
        try:
            await self._request(MessageType.WATCH, path, names(path, token))
        except BaseException:
            del self._watches[token]
            raise
        return token

    def unwatch(self, path: str, token: str) -> None:
        """End a watch: it fires no more from now on. Nobody waits until xenstore has taken it back."""
        if self._watches.pop(token, None) is not None:
            self._begin(MessageType.UNWATCH, path, names(path, token))

    def close(self) -> None:
        """Close the connection, and with it every watch. May be called twice."""
        self._lose(ConnectionError("the connection to xenstore is closed"))

    async def _directory_in_parts(self, path: str) -> list[str]:
        """XS_DIRECTORY_PART: from an offset; begin again when the generation has changed meanwhile."""
        generation, children = b"", b""
        while not children.endswith(b"\0\0"):  # an empty name ends the list
            offset = names(path, str(len(children)))
            part = await self._request(MessageType.DIRECTORY_PART, path, offset)
            generation_now, _, more = part.partition(b"\0")
            if children and generation_now != generation:
                children = b""
            else:
                generation, children = generation_now, children + more
        return split_names(children[:-1])

    async def _request(self, kind: MessageType, path: str, payload: bytes) -> bytes:
        """One request and its answer. The answer is waited for even when our caller no longer does."""
        if len(payload) > MAX_PAYLOAD:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), path)
        return await asyncio.shield(self._begin(kind, path, payload))

    def _begin(self, kind: MessageType, path: str, payload: bytes) -> asyncio.Task[bytes]:
        task = self._loop.create_task(self._exchange(kind, path, payload))
        self._requests.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[bytes]) -> None:
        self._requests.discard(task)
        if not task.cancelled():
            task.exception()  # somebody looked at it, even when the caller has gone

    async def _exchange(self, kind: MessageType, path: str, payload: bytes) -> bytes:
        async with self._turn:
            if self.lost.done():
                raise ConnectionError("the connection to xenstore is lost")
            self._request_id = self._request_id % 0xFFFF_FFFF + 1
            self._answer = self._loop.create_future()
            self._send(Message(kind, self._request_id, payload).encode(), path)
            try:
                async with asyncio.timeout(ANSWER_WITHIN):
                    answer = await self._answer
            except TimeoutError:
                lost = ConnectionError(f"xenstore did not answer within {ANSWER_WITHIN:g} seconds")
                self._lose(lost)
                raise lost from None
        if answer.type == MessageType.ERROR:
            raise failure(answer.payload, path)
        if answer.type != kind:
            raise XenstoreProtocolError(f"xenstore answered request {kind.name} with message {answer.type}")
        return answer.payload

    def _send(self, octets: bytes, path: str) -> None:
        """With one request under way there is room for it, else nobody reads at the other end."""
        try:
            written = os.write(self._descriptor, octets)
        except (BlockingIOError, BrokenPipeError, ConnectionError) as error:
            lost = ConnectionError(f"xenstore takes no requests ({error.strerror})")
            self._lose(lost)
            raise lost from error
        except OSError as error:  # the kernel's device refuses a watch by the error of the write
            raise OSError(error.errno or errno.EIO, error.strerror, path) from error
        if written != len(octets):
            self._lose(ConnectionError("xenstore took a part of a request"))

    def _receive(self) -> None:
        try:
            data = os.read(self._descriptor, _CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(ConnectionError(f"the connection to xenstore is lost ({error.strerror})"))
            return
        if not data:
            self._lose(ConnectionError("xenstored has closed the connection"))
            return
        try:
            for message in self._decoder.feed(data):
                self._take(message)
        except XenstoreProtocolError as error:
            self._lose(error)

    def _take(self, message: Message) -> None:
        if message.type == MessageType.WATCH_EVENT:
            path, token = split_names(message.payload)[:2]
            fired = self._watches.get(token)
            if fired is not None:
                fired(path)
            return
        answer = self._answer
        if answer is None or answer.done() or message.request_id not in (0, self._request_id):
            raise XenstoreProtocolError("xenstore answered a request that was not made")
        answer.set_result(message)

    def _lose(self, reason: OSError) -> None:
        if self.lost.done():
            return
        self.lost.set_result(None)
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._watches.clear()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(reason)


def _open_first(places: Sequence[Path]) -> int:
    complaints = []
    for place in places:
        try:
            return _open(place)
        except OSError as error:
            complaints.append(f"{place}: {error.strerror or error}")
    raise OSError(errno.ENOENT, f"xenstore cannot be reached ({'; '.join(complaints)})")


def _open(place: Path) -> int:
    if not stat.S_ISSOCK(place.stat().st_mode):
        return os.open(place, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    with _connected(place) as connection:
        return connection.detach()


@contextlib.contextmanager
def _connected(place: Path) -> Iterator[socket.socket]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(os.fspath(place))
        yield connection
    finally:
        connection.close()
