"""Handshake messages out of the fragments that records carry (RFC 8446 section 5.1)."""

from __future__ import annotations

from typing import Final

from vmtoken.tls.errors import MalformedMessage, TooManyRecords

HEADER_LENGTH: Final = 4
"""Octets of type and length in front of a handshake message (RFC 8446 section 4)."""

MAX_MESSAGE: Final = 1 << 16
"""Octets of the longest message taken: a chain of ten large certificates takes a third of it."""


class HandshakeReassembler:
    """Collects fragments until messages are whole; one message may span records, one record hold many."""

    def __init__(self) -> None:
        self._buffer = b""

    @property
    def is_empty(self) -> bool:
        """True between messages: keys may change only here (RFC 8446 section 5.1)."""
        return not self._buffer

    def feed(self, fragment: bytes) -> None:
        """Append the content of a handshake record. Raises `TooManyRecords` for an empty one."""
        if not fragment:
            raise TooManyRecords("an empty handshake record came")
        self._buffer += fragment

    def next_message(self) -> bytes | None:
        """The next whole message with its header, None until it has come.

        Raises `MalformedMessage` as soon as the header promises more than `MAX_MESSAGE`.
        """
        if len(self._buffer) < HEADER_LENGTH:
            return None
        length = int.from_bytes(self._buffer[1:HEADER_LENGTH], "big")
        if length > MAX_MESSAGE:
            raise MalformedMessage(f"a handshake message of {length} octets, the longest has {MAX_MESSAGE}")
        end = HEADER_LENGTH + length
        if len(self._buffer) < end:
            return None
        message, self._buffer = self._buffer[:end], self._buffer[end:]
        return message
