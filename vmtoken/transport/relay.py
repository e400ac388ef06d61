"""Splice two byte streams: what one end receives, the other sends.

Both ends are asyncio transports, so a Unix socket, a TLS connection and a vchan look the
same. Memory is bounded: an end whose peer cannot write stops reading.
"""

from __future__ import annotations

import asyncio


class SpliceEnd(asyncio.Protocol):
    """One end of a splice; what it receives goes to its `other` end.

    Data that arrives before there is another end is held back by not reading. Python before 3.11.3
    starts reading after `connection_made` whatever was said there: what one read brings is kept then.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: SpliceEnd | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self._ended = False
        self._early = b""

    def join(self, other: SpliceEnd) -> None:
        """Make this end and `other` one stream; both are connected."""
        self.other, other.other = other, self
        for end in (self, other):
            end._take_over()

    def _take_over(self) -> None:
        assert self.transport is not None
        assert self.other is not None
        if self.transport.is_closing() or self.closed.done():
            self.other.close()
            return
        early, self._early = self._early, b""
        if early:
            self.data_received(early)
        self.transport.resume_reading()

    def close(self) -> None:
        """Send what is buffered, then close this end."""
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the other end before anything is read."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """Send it on."""
        if self.other is None:
            self._keep(data)
            return
        assert self.other.transport is not None
        self.other.transport.write(data)

    def _keep(self, data: bytes) -> None:
        """Stop reading once more: the transport takes itself for paused, so it has to be woken first."""
        assert self.transport is not None
        self._early += data
        self.transport.resume_reading()
        self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Pass the end of this half on; the other half stays open where the transport can do that."""
        self._ended = True
        other = self.other
        if other is None or other.transport is None or other._ended or not other.transport.can_write_eof():
            return False
        other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        """This end takes no more: the other one stops reading."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """This end takes data again."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other end, after what it still has to send."""
        if self.other is not None:
            self.other.close()
        if not self.closed.done():
            self.closed.set_result(None)
