"""Fragmentation of TLS messages in EAP-TLS, RFC 5216 section 2.1.5.

A TLS message here is what one side sends before it waits: whole records, cut without regard to them.
"""

from __future__ import annotations

from vmtoken.codec import DecodeError
from vmtoken.eap.eap_tls import FLAGS_LENGTH, TLS_LENGTH_LENGTH, EapTlsMessage
from vmtoken.eap.packet import HEADER_LENGTH

MIN_PACKET_LENGTH = 64
"""Octets; below this a flight takes more round trips than any peer allows."""

_OVERHEAD = HEADER_LENGTH + 1 + FLAGS_LENGTH
"""Octets of an EAP-TLS packet that are not TLS data: EAP header, type, flags."""


class Fragmenter:
    """One TLS message, given out in pieces that fit into EAP packets of a size."""

    def __init__(self, data: bytes, packet_length: int) -> None:
        """`packet_length` is the longest EAP packet, in octets."""
        if packet_length < MIN_PACKET_LENGTH:
            raise ValueError(f"an EAP packet has at least {MIN_PACKET_LENGTH} octets, not {packet_length}")
        self._data = data
        self._packet_length = packet_length
        self._position = 0

    @property
    def is_done(self) -> bool:
        """Whether everything was given out."""
        return self._position >= len(self._data)

    def next_fragment(self) -> EapTlsMessage:
        """The next piece; the first says how long the message is, all but the last that more follow.

        The length is given in messages of one piece as well, which section 2.1.5 allows and old cards do.
        """
        is_first = self._position == 0
        room = self._packet_length - _OVERHEAD - (TLS_LENGTH_LENGTH if is_first else 0)
        piece = self._data[self._position : self._position + room]
        self._position += len(piece)
        length = len(self._data) if is_first else None
        return EapTlsMessage(piece, more_fragments=not self.is_done, tls_message_length=length)


class Reassembler:
    """Puts fragments together; never holds more than `limit` octets."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self._announced: int | None = None

    def add(self, message: EapTlsMessage) -> bytes | None:
        """Take a fragment: the whole message if it was the last, None if more must come.

        Raises `DecodeError`, and forgets the fragments, if they are too long or not as announced.
        """
        try:
            self._check(message)
        except DecodeError:
            self.clear()
            raise
        self._pieces.append(message.data)
        self._size += len(message.data)
        return None if message.more_fragments else self._take()

    def clear(self) -> None:
        """Forget the fragments received so far."""
        self._pieces.clear()
        self._size = 0
        self._announced = None

    def _check(self, message: EapTlsMessage) -> None:
        if self._pieces and message.tls_message_length not in (None, self._announced):
            raise DecodeError("two fragments announce different lengths")
        if not self._pieces:
            self._begin(message)
        size = self._size + len(message.data)
        if size > self._limit:
            raise DecodeError(f"a TLS message of more than {self._limit} octets")
        if self._announced is not None:
            self._check_announced(message, size)

    def _begin(self, message: EapTlsMessage) -> None:
        if message.more_fragments and message.tls_message_length is None:
            raise DecodeError("the first fragment does not say how long the TLS message is")
        self._announced = message.tls_message_length

    def _check_announced(self, message: EapTlsMessage, size: int) -> None:
        assert self._announced is not None
        if self._announced > self._limit:
            raise DecodeError(f"a TLS message of {self._announced} octets, {self._limit} is the most")
        if message.more_fragments and not message.data:
            raise DecodeError("a fragment without data")
        fits = size < self._announced if message.more_fragments else size == self._announced
        if not fits:
            raise DecodeError(f"the TLS message has not the {self._announced} octets that were announced")

    def _take(self) -> bytes:
        message = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self.clear()
        return message
