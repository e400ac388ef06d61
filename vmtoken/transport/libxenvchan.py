"""libxenvchan behind one typed class: the one place that knows the C ABI (libxenvchan.h, Xen 4.14 and later).

Nothing here waits for the peer. What the library leaves to its caller is done here: the flag `blocking` is
set as soon as there is a structure, names have the length that its buffer takes, and what the peer writes
into the shared page is taken for what it is. `open_server`, `open_client` and `close` talk to xenstored, and
wait for that: they are for a thread.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import functools
import os
import threading
from pathlib import Path
from typing import Final, Protocol

MAX_PATH: Final = 49
"""Octets of a xenstore path: the library builds `PATH/event-channel` in a buffer of 64, and cuts the rest."""

MAX_RING: Final = 1 << 20
"""Octets of a ring; the library refuses more."""

PAGE: Final = 4096

_CONSUMER, _PRODUCER = 0, 1
"""Indexes of `struct ring_shared`; of a ring that we read the consumer is ours, of the other the producer."""

_CHUNK: Final = 65536
"""Octets of one read at most."""

_LIBRARIES: Final = [f"libxenvchan.so.4.{minor}" for minor in range(22, 13, -1)]
"""One a release of Xen; `struct libxenvchan` is the same in all of them up to what is used here."""

_GRANT_LIMIT: Final = Path("/sys/module/xen_gntalloc/parameters/limit")
_TCACHE_DEPTH: Final = 7
"""Chunks of one size that glibc keeps for a thread (malloc.c, TCACHE_FILL_COUNT)."""


class VchanState(enum.Enum):
    """What the shared page says; the octet is the peer's to write."""

    WAITING = "waiting"
    """A server that no client has come to."""

    OPEN = "open"
    CLOSED = "closed"

    BROKEN = "broken"
    """The peer wrote what no implementation writes."""


class VchanClosed(ConnectionError):
    """The peer has gone; nothing it sent is left."""


class Vchan(Protocol):
    """One end of a vchan. Used by one thread at a time; no method waits for the peer."""

    @property
    def event(self) -> int:
        """The descriptor that is readable after a notification, until `acknowledge`."""
        ...

    @property
    def state(self) -> VchanState:
        """What the peer says of itself."""
        ...

    @property
    def used(self) -> bool:
        """Whether something has passed through our end of the rings, for us or for a client before us."""
        ...

    def acknowledge(self) -> None:
        """Take the notification; the next one makes the descriptor readable again."""
        ...

    def read(self, size: int) -> bytes:
        """At most `size` octets, none when there are none now. Raises `VchanClosed` after the last."""
        ...

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Put as much as there is room for; how much that was. Raises `VchanClosed`."""
        ...

    def close(self) -> None:
        """Give everything back; a server's nodes leave xenstore. Waits for xenstored. May be called twice."""
        ...


def open_server(domid: int, path: str, *, read_size: int, write_size: int) -> Vchan:
    """A server for the one domain `domid` at a xenstore path; sizes are in octets, seen from here.

    Raises `OSError`: `ENOSPC` when grants are used up, `ENOENT` without the library or without Xen, `EACCES`
    when our user may not open the devices or write there.
    """
    _check(path, read_size, write_size)
    with _grants.reserved(pages(read_size, write_size)):
        _clean_heap()
        ctypes.set_errno(0)
        control = _library().libxenvchan_server_init(None, domid, os.fsencode(path), read_size, write_size)
        if not control:
            raise _failure(path)
        return _LibVchan(control, pages(read_size, write_size))


def open_client(domid: int, path: str) -> Vchan:
    """The client's end of what domain `domid` serves at a path.

    Raises `OSError`: `PermissionError` when there is no such server for us, `EINVAL` when it is gone or busy.
    """
    _check(path, 0, 0)
    _clean_heap()
    ctypes.set_errno(0)
    control = _library().libxenvchan_client_init(None, domid, os.fsencode(path))
    if not control:
        raise _failure(path)
    return _LibVchan(control, 0)


def pages(read_size: int, write_size: int) -> int:
    """Pages that a server of these ring sizes grants: one shared, and the rings that do not fit into it."""
    return 1 + _ring_pages(read_size, in_page=1024) + _ring_pages(write_size, in_page=2048)


def grant_limit() -> int:
    """Pages that this machine may grant in all (module xen_gntalloc; 1024 unless changed)."""
    try:
        return int(_GRANT_LIMIT.read_text())
    except (OSError, ValueError):
        return 1024


def available() -> str | None:
    """Why there can be no vchan here, in a sentence; None when there can."""
    try:
        _library()
    except OSError as error:
        return f"{error.strerror}."
    return None


def library_name() -> str:
    """The library that is used, such as `libxenvchan.so.4.17`. Raises `OSError` when there is none."""
    return str(_library()._name)


class _Ring(ctypes.Structure):
    """`struct libxenvchan_ring`; `shr` points at consumer and producer index."""

    _fields_ = (
        ("shr", ctypes.POINTER(ctypes.c_uint32)),
        ("buffer", ctypes.c_void_p),
        ("order", ctypes.c_int),
    )


class _Control(ctypes.Structure):
    """`struct libxenvchan`."""

    _fields_ = (
        ("gnt", ctypes.c_void_p),
        ("ring", ctypes.c_void_p),
        ("event", ctypes.c_void_p),
        ("event_port", ctypes.c_uint32),
        ("is_server", ctypes.c_int, 1),
        ("server_persist", ctypes.c_int, 1),
        ("blocking", ctypes.c_int, 1),
        ("read", _Ring),
        ("write", _Ring),
        ("xs_path", ctypes.c_char_p),
    )


class _LibVchan:
    """A structure of the library."""

    def __init__(self, control: ctypes._Pointer[_Control], granted: int) -> None:
        control.contents.blocking = 0  # the library leaves what malloc gave
        self._control: ctypes._Pointer[_Control] | None = control
        self._granted = granted
        self._library = _library()
        self.event: int = self._library.libxenvchan_fd_for_select(control)
        os.set_blocking(self.event, False)  # a wait without a notification returns at once
        self._buffer = ctypes.create_string_buffer(_CHUNK)
        self._order: int = control.contents.read.order
        self._indexes = control.contents.read.shr

    @property
    def state(self) -> VchanState:
        match self._library.libxenvchan_is_open(self._open):
            case 0:
                return VchanState.CLOSED
            case 1:
                return VchanState.BROKEN if self._overrun else VchanState.OPEN
            case 2 if self._open.contents.is_server:
                return VchanState.WAITING
            case _:
                return VchanState.BROKEN

    @property
    def used(self) -> bool:
        control = self._open.contents
        return bool(control.read.shr[_CONSUMER] or control.write.shr[_PRODUCER])

    def acknowledge(self) -> None:
        self._library.libxenvchan_wait(self._open)

    def read(self, size: int) -> bytes:
        count = self._library.libxenvchan_read(self._open, self._buffer, min(size, _CHUNK))
        if count < 0:
            raise VchanClosed
        return ctypes.string_at(self._buffer, count)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        octets = bytes(data)
        count: int = self._library.libxenvchan_write(self._open, octets, len(octets))
        if count < 0:
            raise VchanClosed
        return count

    def close(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            self._library.libxenvchan_close(control)
            _grants.give_back(self._granted)

    @property
    def _open(self) -> ctypes._Pointer[_Control]:
        if self._control is None:
            raise VchanClosed
        return self._control

    @property
    def _overrun(self) -> bool:
        """The peer claims to have written more than the ring holds; the library reads nothing then."""
        consumer: int = self._indexes[_CONSUMER]
        producer: int = self._indexes[_PRODUCER]
        return (producer - consumer) % (1 << 32) > 1 << self._order


class _Grants:
    """Counts what is granted: at the limit of the kernel a failing server_init may take the process down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages = 0

    def reserved(self, count: int) -> _Reservation:
        with self._lock:
            if self._pages + count > grant_limit():
                used = f"{self._pages} of {grant_limit()} pages are granted to other VMs"
                raise OSError(errno.ENOSPC, f"{used}; raise the limit in {_GRANT_LIMIT}")
            self._pages += count
        return _Reservation(self, count)

    def give_back(self, count: int) -> None:
        with self._lock:
            self._pages -= count


class _Reservation:
    """Pages that are given back unless the block ends well."""

    def __init__(self, grants: _Grants, count: int) -> None:
        self._grants = grants
        self._count = count

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._grants.give_back(self._count)


_grants = _Grants()


def _check(path: str, read_size: int, write_size: int) -> None:
    if len(os.fsencode(path)) > MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"longer than {MAX_PATH} octets, which libxenvchan would cut", path)
    if not (0 <= read_size <= MAX_RING and 0 <= write_size <= MAX_RING):
        raise OSError(errno.EINVAL, f"rings have at most {MAX_RING} octets", path)


def _ring_pages(size: int, *, in_page: int) -> int:
    if size <= in_page:
        return 0
    return max(1 << (size - 1).bit_length(), PAGE) // PAGE


def _failure(path: str) -> OSError:
    number = ctypes.get_errno() or errno.EIO
    return OSError(number, os.strerror(number), path)


def _clean_heap() -> None:
    """Let the library's next malloc of its structure give zeroes, but for what it fills itself.

    An init that fails halfway closes a structure that it has not filled: it unmaps, removes and frees what
    happens to be there (seen: SIGSEGV, double free). glibc keeps some chunks of each size that a thread has
    freed, and gives it those first; when all of them are zeroes, the way out is clean.
    """
    c, size = _libc(), ctypes.sizeof(_Control)
    chunks = [c.malloc(size) for _ in range(_TCACHE_DEPTH)]  # not calloc, which takes none of those kept
    for chunk in chunks:
        ctypes.memset(chunk, 0, size)
        c.free(chunk)


@functools.cache
def _libc() -> ctypes.CDLL:
    c = ctypes.CDLL(None)
    c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    c.free.restype, c.free.argtypes = None, (ctypes.c_void_p,)
    return c


@functools.cache
def _library() -> ctypes.CDLL:
    """Raises `OSError` when no library of a known release is there."""
    for name in _LIBRARIES:
        try:
            return _declared(ctypes.CDLL(name, use_errno=True))
        except OSError:
            continue
    raise OSError(errno.ENOENT, "libxenvchan is not installed; on Debian it is in the package libxenmisc4.17")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    control, size = ctypes.POINTER(_Control), ctypes.c_size_t
    for name, result, arguments in (
        ("server_init", control, (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, size, size)),
        ("client_init", control, (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)),
        ("close", None, (control,)),
        ("read", ctypes.c_int, (control, ctypes.c_void_p, size)),
        ("write", ctypes.c_int, (control, ctypes.c_char_p, size)),
        ("wait", ctypes.c_int, (control,)),
        ("is_open", ctypes.c_int, (control,)),
        ("fd_for_select", ctypes.c_int, (control,)),
    ):
        function = getattr(library, f"libxenvchan_{name}")
        function.restype, function.argtypes = result, arguments
    return library
