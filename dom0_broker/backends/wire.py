"""What a device process and the broker say to each other: MessagePack in frames with a length of 4 octets.

A lane is a socket of its own, on which one call at a time is answered. The control socket carries new lanes
(the name, with the descriptor) to the child, and events from it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from msgspec import MsgspecError, Struct, msgpack

from vmtoken.errors import VmTokenError, rebuilt
from vmtoken.secret import SecretBytes

MAX_FRAME: Final = 1 << 20
"""Octets; a list of the certificates of many cards takes a tenth of it."""

_LENGTH: Final = 4
_SECRET: Final = 1
"""Extension type of a `SecretBytes`."""


Message = TypeVar("Message", bound=Struct)


class Call(Struct, frozen=True, array_like=True):
    """Asks for one method."""

    method: str
    arguments: Sequence[Any]

    def __repr__(self) -> str:
        return f"Call({self.method!r})"  # an APDU may hold a PIN


class Failure(Struct, frozen=True, array_like=True):
    """A `VmTokenError` on its way."""

    reason: str
    message: str
    retry_after: float | None
    metadata: dict[str, str]

    @classmethod
    def of(cls, error: VmTokenError) -> Failure:
        """What goes over the wire of an error."""
        return cls(error.reason, error.message, error.retry_after, error.metadata)

    def error(self) -> VmTokenError:
        """The error again."""
        return rebuilt(self.reason, self.message, self.metadata, self.retry_after)


class Answer(Struct, frozen=True, array_like=True):
    """What became of a call."""

    value: Any = None
    failure: Failure | None = None

    def __repr__(self) -> str:
        return f"Answer({self.failure})"  # an APDU may hold a key block


class Event(Struct, frozen=True, array_like=True):
    """Something that nobody asked for, such as a card that went."""

    value: Any


class WireBroken(Exception):
    """The other end is gone, or what it sent makes no sense."""


def send(sock: socket.socket, message: Struct) -> None:
    """Raises `WireBroken`, `TimeoutError`."""
    octets = _encoder.encode(message)
    try:
        sock.sendall(len(octets).to_bytes(_LENGTH, "big") + octets)
    except TimeoutError:
        raise
    except OSError as error:
        raise WireBroken("the other end is gone") from error


def receive(sock: socket.socket, deadline: float | None = None) -> bytes:
    """The next frame, whole before `deadline` (`time.monotonic`).

    Raises `WireBroken`, also at its end, and `TimeoutError`.
    """
    length = int.from_bytes(_exactly(sock, _LENGTH, deadline), "big")
    if length > MAX_FRAME:
        raise WireBroken(f"a frame of {length} octets")
    return _exactly(sock, length, deadline)


def decode_call(octets: bytes) -> Call:
    """Raises `WireBroken`."""
    return _decoded(_calls, octets)


def decode_answer(octets: bytes) -> Answer:
    """Raises `WireBroken`."""
    return _decoded(_answers, octets)


def decode_event(octets: bytes) -> Event:
    """Raises `WireBroken`."""
    return _decoded(_events, octets)


def _exactly(sock: socket.socket, length: int, deadline: float | None) -> bytes:
    octets = bytearray()
    while len(octets) < length:
        if deadline is not None:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            part = sock.recv(length - len(octets))
        except TimeoutError:
            raise
        except OSError as error:
            raise WireBroken("the other end is gone") from error
        if not part:
            raise WireBroken("the other end is gone")
        octets += part
    return bytes(octets)


def _extension(value: Any) -> Any:
    if isinstance(value, SecretBytes):
        return msgpack.Ext(_SECRET, value.reveal())
    raise TypeError(f"{type(value).__name__} does not go over the wire")


def _secret(code: int, octets: memoryview) -> SecretBytes:
    if code != _SECRET:
        raise ValueError(f"there is no extension type {code}")
    return SecretBytes(octets)


def _decoded(decoder: msgpack.Decoder[Message], octets: bytes) -> Message:
    try:
        return decoder.decode(octets)
    except (MsgspecError, ValueError) as error:
        raise WireBroken("a frame that is no message") from error


_encoder: Final = msgpack.Encoder(enc_hook=_extension)
_calls: Final = msgpack.Decoder(Call, ext_hook=_secret)
_answers: Final = msgpack.Decoder(Answer, ext_hook=_secret)
_events: Final = msgpack.Decoder(Event, ext_hook=_secret)
