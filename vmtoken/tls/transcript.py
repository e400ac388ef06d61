"""Handshake messages: kept whole until the hash is known, then only hashed (RFC 8446 section 4.4.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from vmtoken.tls.codes import HandshakeType

if TYPE_CHECKING:
    from hashlib import _Hash

    from vmtoken.tls.suites import Suite


class TranscriptBuffer:
    """Messages in order, with their headers: before the suite is known, and all through TLS 1.2.

    A TLS 1.2 client signs the messages themselves, not their hash (RFC 5246 section 7.4.8).
    """

    __slots__ = ("_messages",)

    def __init__(self) -> None:
        self._messages = bytearray()

    @property
    def messages(self) -> bytes:
        """All that was added, one after the other."""
        return bytes(self._messages)

    def add(self, message: bytes) -> None:
        """Take one encoded message, header included."""
        self._messages += message

    def digest(self, suite: Suite) -> bytes:
        """Hash of all messages so far."""
        return self.digest_with(suite, b"")

    def digest_with(self, suite: Suite, truncated: bytes) -> bytes:
        """Hash of all messages so far and part of one more, which is not added (PSK binders)."""
        transcript = _HASHES[suite.hash_name](self._messages)
        transcript.update(truncated)
        return transcript.digest()

    def replace_by_hash(self, suite: Suite) -> None:
        """Put message_hash in place of the first ClientHello; the HelloRetryRequest is added after it."""
        digest = self.digest(suite)
        self._messages[:] = bytes((HandshakeType.MESSAGE_HASH, 0, 0, len(digest))) + digest

    def transcript(self, suite: Suite) -> Transcript:
        """Go on with the running hash of this suite; the messages are no longer needed."""
        return Transcript(suite, self._messages)


class Transcript:
    """Running hash over the messages, with their headers."""

    __slots__ = ("_hash",)

    def __init__(self, suite: Suite, messages: bytes | bytearray = b"") -> None:
        self._hash = _HASHES[suite.hash_name](messages)

    def add(self, message: bytes) -> None:
        """Take one encoded message, header included."""
        self._hash.update(message)

    def digest(self) -> bytes:
        """Transcript-Hash of all messages so far."""
        return self._hash.copy().digest()


_HASHES: dict[str, Callable[[bytes | bytearray], _Hash]] = {
    "sha256": hashlib.sha256,
    "sha384": hashlib.sha384,
}
