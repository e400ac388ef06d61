"""The messages of xenstore (docs/misc/xenstore.txt and xen/include/public/io/xs_wire.h of Xen); no I/O.

A message is a header of four 32-bit numbers in the machine's own order, then the payload. Names end with a
zero octet, values do not.
"""

from __future__ import annotations

import enum
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_HEADER: Final = struct.Struct("=IIII")

MAX_PAYLOAD: Final = 4096
"""Octets of a request (XENSTORE_PAYLOAD_MAX); a longer one closes the connection."""

MAX_ANSWER: Final = 1 << 20
"""Octets: xenstored keeps to 4096 and gives longer lists in parts, oxenstored sends them whole in dom0."""


class MessageType(enum.IntEnum):
    """`enum xsd_sockmsg_type`, as far as it is used here."""

    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    DIRECTORY_PART = 22


class XenstoreProtocolError(OSError):
    """What came from xenstore is no message of its protocol."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, either way."""

    type: int
    request_id: int
    payload: bytes

    def encode(self) -> bytes:
        """For the socket or device; in one piece, since the kernel's device takes a message a write."""
        return _HEADER.pack(self.type, self.request_id, 0, len(self.payload)) + self.payload


class Permission(enum.StrEnum):
    """What a domain may do with a node."""

    NONE = "n"
    READ = "r"
    WRITE = "w"
    BOTH = "b"


@dataclass(frozen=True, slots=True)
class Access:
    """One entry of a node's permissions: of the first, the domain owns the node and the letter is for
    everybody else.
    """

    permission: Permission
    domid: int

    def __str__(self) -> str:
        return f"{self.permission}{self.domid}"

    @classmethod
    def parse(cls, text: str) -> Access:
        """Raises `XenstoreProtocolError`."""
        try:
            return cls(Permission(text[:1]), int(text[1:]))
        except ValueError as error:
            raise XenstoreProtocolError(f"xenstore gave the permission '{text}'") from error


class Decoder:
    """Cuts what a socket or device brings into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now. Raises `XenstoreProtocolError`."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, request_id, _, length = _HEADER.unpack_from(self._buffer)
            if length > MAX_ANSWER:
                raise XenstoreProtocolError(f"xenstore sent {length} octets, more than {MAX_ANSWER}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Message(kind, request_id, payload)


def names(*parts: str) -> bytes:
    """Names as they go into a payload, each with its zero. Raises `ValueError` for what is no name."""
    if any("\0" in part for part in parts):
        raise ValueError("a name in xenstore has no zero octet")
    return b"".join(os.fsencode(part) + b"\0" for part in parts)


def split_names(payload: bytes) -> list[str]:
    """The names in a payload."""
    return [os.fsdecode(name) for name in payload.split(b"\0")[:-1]]


def failure(payload: bytes, path: str) -> OSError:
    """What an ERROR message means: the subclass of `OSError` for its name, such as `EACCES`."""
    name = payload.rstrip(b"\0").decode("ascii", "replace")
    number = getattr(errno, name, None) if name.startswith("E") else None
    if not isinstance(number, int):
        return XenstoreProtocolError(f"xenstore answered with the error '{name}'")
    return OSError(number, os.strerror(number), path)
