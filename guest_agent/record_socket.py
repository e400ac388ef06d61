"""The TCP connection to a server: whole TLS records while a token shakes hands, then any bytes.

The bytes are received into one buffer that all connections share. That is sound because
asyncio fills it and calls `buffer_updated` without anything in between, and it makes an idle
session cost no buffer at all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from guest_agent.dial import dial
from vmtoken.errors import TlsHandshakeFailed

MAX_RECORDS: Final = 65_536
"""Octets of records handed to the broker at once (token_service.proto)."""

_RECEIVE_SIZE = 262_144
_HEADER = 5
_MAX_CIPHERTEXT = 16_384 + 2_048
"""Octets of a record's fragment, RFC 5246 section 6.2.3; TLS 1.3 allows less."""

_CONTENT_TYPES = range(20, 25)
"""change_cipher_spec to heartbeat; RFC 8446 section 5.1."""

_shared_buffer = memoryview(bytearray(_RECEIVE_SIZE))

Receiver = Callable[[memoryview], None]


class NotTls(TlsHandshakeFailed):
    """What the server sent is no TLS record."""


class RecordSocket(asyncio.BufferedProtocol):
    """One connection. First `read_records`, then, after `hand_over`, a receiver gets every octet."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._held = bytearray()
        self._receiver: Receiver | None = None
        self._on_end: Callable[[], None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self.ended = False
        self.error: OSError | None = None
        self.closed = self._loop.create_future()
        self.octets_received = 0
        self.octets_sent = 0

    @property
    def peer(self) -> str:
        """Address and port that TCP reached."""
        assert self._transport is not None
        address = self._transport.get_extra_info("peername")
        return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"

    # During the handshake.

    async def read_records(self) -> bytes:
        """At least one whole record, as many as have come; at most `MAX_RECORDS` octets.

        Raises `NotTls`, and `EOFError` when the connection ends before the record does.
        """
        while not (length := whole_records(self._held)):
            if self.ended:
                raise EOFError
            self._arrival = self._loop.create_future()
            await self._arrival
        records = bytes(self._held[:length])
        del self._held[:length]
        self._resume()
        return records

    def hand_over(self, receiver: Receiver, on_end: Callable[[], None]) -> None:
        """From now on `receiver` gets what comes, and `on_end` is called once when nothing will."""
        held, self._held = self._held, bytearray()
        self._receiver, self._on_end = receiver, on_end
        if held:
            receiver(memoryview(held))
        if self.ended:
            on_end()
        else:
            self._resume()

    # Sending.

    def send(self, data: bytes | bytearray) -> None:
        """Send without waiting; what the kernel does not take now is kept until it does."""
        assert self._transport is not None
        if data and not self._transport.is_closing():
            self.octets_sent += len(data)
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until TCP has taken everything."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def pause(self) -> None:
        """Receive nothing more until `resume`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Receive again."""
        self._resume()

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close after what is still to be sent."""
        if self._transport is not None:
            self._transport.close()

    def end_write(self, linger: float) -> None:
        """Send what is to be sent and our FIN; abort after `linger` seconds unless closed before.

        Closing with octets unread makes the kernel reset the connection, and a reset can take the
        alert or the data away that the server has not read yet.
        """
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self._transport.write_eof()
        except OSError:  # the server has reset the connection, and nothing has told us yet
            self._transport.abort()
            return
        self._resume()
        timer = self._loop.call_later(linger, self.abort)
        self.closed.add_done_callback(lambda _: timer.cancel())

    def close_gently(self, linger: float) -> None:
        """As `end_write`, and close as soon as the server has ended too; what it still sends is discarded."""
        self._receiver, self._on_end, self._held = _discard, self.close, bytearray()
        self.end_write(linger)
        if self.ended:
            self.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP is connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # so that drain means: in the hands of TCP

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to receive into."""
        return _shared_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Octets came."""
        self.octets_received += nbytes
        if self._receiver is not None:
            self._receiver(_shared_buffer[:nbytes])
            return
        self._held += _shared_buffer[:nbytes]
        if len(self._held) >= MAX_RECORDS:
            self.pause()
        self._wake()

    def eof_received(self) -> bool:
        """The server sends no more; our half stays open."""
        self._end()
        return True

    def pause_writing(self) -> None:
        """The kernel took less than we had."""
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """The kernel has taken everything."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if isinstance(exc, OSError):
            self.error = exc
            self._receive_last_words()
        self._end()
        self.resume_writing()
        if not self.closed.done():
            self.closed.set_result(None)

    def _receive_last_words(self) -> None:
        """Read what the kernel still holds.

        A server that refuses us sends an alert and resets: when we learn of the reset by
        writing, asyncio gives the connection up with the alert unread.
        """
        assert self._transport is not None
        descriptor = self._transport.get_extra_info("socket").fileno()
        try:
            octets = os.readv(descriptor, [_shared_buffer])
        except OSError:
            return
        if octets:
            self.buffer_updated(octets)

    def _end(self) -> None:
        if self.ended:
            return
        self.ended = True
        self._wake()
        if self._on_end is not None:
            self._on_end()

    def _wake(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)


async def open_record_socket(host: str, port: int) -> RecordSocket:
    """Connect TCP to a server. Raises `ServerUnreachable`."""
    connection = await dial(host, port)
    try:
        _, opened = await asyncio.get_running_loop().create_connection(RecordSocket, sock=connection)
    except BaseException:
        connection.close()
        raise
    return opened


def _discard(octets: memoryview) -> None:
    """What comes after our last word is of no use."""


def whole_records(held: bytearray) -> int:
    """Length of the whole records at the start of `held`, at most `MAX_RECORDS`."""
    end = 0
    while len(held) - end >= _HEADER:
        if held[end] not in _CONTENT_TYPES or held[end + 1] != 3:
            raise NotTls(
                f"The server does not speak TLS; it sent '{_printable(bytes(held[end : end + 24]))}'."
            )
        length = int.from_bytes(held[end + 3 : end + 5], "big")
        if length > _MAX_CIPHERTEXT:
            raise NotTls(f"The server sent a record of {length} octets, more than TLS allows.")
        if end + _HEADER + length > min(len(held), MAX_RECORDS):
            break
        end += _HEADER + length
    return end


def _printable(octets: bytes) -> str:
    return "".join(chr(octet) if 32 <= octet < 127 and octet != 39 else "." for octet in octets)
