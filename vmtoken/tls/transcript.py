"""The transcript of a handshake: a buffer before the hash is known, a running hash after."""

from __future__ import annotations

import hashlib

from vmtoken.tls.codes import HandshakeType
from vmtoken.tls.suites import Suite


class TranscriptBuffer:
    """Handshake messages seen before the server chose the hash."""

    __slots__ = ("_messages",)

    def __init__(self) -> None:
        self._messages = b""

    def add(self, message: bytes) -> None:
        """Append a handshake message with its 4-octet header."""
        self._messages += message

    def digest_with(self, suite: Suite, truncated: bytes) -> bytes:
        """The hash of everything so far and a ClientHello without its binders (RFC 8446 section 4.2.11.2)."""
        return hashlib.new(suite.hash_name, self._messages + truncated).digest()

    def replace_by_hash(self, suite: Suite) -> None:
        """After HelloRetryRequest its hash stands for the first ClientHello (RFC 8446 section 4.4.1)."""
        digest = hashlib.new(suite.hash_name, self._messages).digest()
        self._messages = bytes([HandshakeType.MESSAGE_HASH, 0, 0, len(digest)]) + digest

    def start(self, suite: Suite) -> Transcript:
        """Go on with the hash that was chosen."""
        return Transcript(suite.hash_name, self._messages)


class Transcript:
    """The running hash over all handshake messages (RFC 8446 section 4.4.1, RFC 5246 section 7.4.9)."""

    __slots__ = ("_hash",)

    def __init__(self, hash_name: str, messages: bytes = b"") -> None:
        self._hash = hashlib.new(hash_name, messages)

    def add(self, message: bytes) -> None:
        """Append a handshake message with its 4-octet header."""
        self._hash.update(message)

    def digest(self) -> bytes:
        """The hash of everything so far."""
        return self._hash.copy().digest()
