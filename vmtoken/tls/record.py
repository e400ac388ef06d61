"""The record layer: framing of a byte stream, and the protection of one direction.

RFC 8446 section 5, RFC 5246 section 6. Framing and protection know nothing of messages, and
protection knows nothing of streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag

from vmtoken.tls.codes import ContentType, ProtocolVersion
from vmtoken.tls.errors import (
    BadRecordMac,
    MalformedMessage,
    RecordOverflow,
    SequenceExhausted,
    UnexpectedMessage,
)
from vmtoken.tls.key_block import MAX_PLAINTEXT
from vmtoken.tls.key_schedule import traffic_keys
from vmtoken.tls.suites import NONCE_LENGTH, TAG_LENGTH, Suite

HEADER_LENGTH: Final = 5
"""Octets of content type, version and length (RFC 8446 section 5.1)."""

MAX_FRAGMENT: Final = MAX_PLAINTEXT + 256
"""Octets of the longest fragment of TLS 1.3 (RFC 8446 section 5.2); AEADs of TLS 1.2 add less than that."""

_CONTENT_TYPES: Final = frozenset(
    {ContentType.CHANGE_CIPHER_SPEC, ContentType.ALERT, ContentType.HANDSHAKE, ContentType.APPLICATION_DATA}
)


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it came, or one that is in clear."""

    content_type: int
    fragment: bytes = field(repr=False)


class RecordReader:
    """Cuts a byte stream into records; holds at most one incomplete record and what came with it."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append what came."""
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += data

    @property
    def is_empty(self) -> bool:
        """True between records."""
        return self._position == len(self._buffer)

    def next_record(self) -> Record | None:
        """The next whole record, None until it has come.

        Raises `UnexpectedMessage`, `MalformedMessage` or `RecordOverflow` as soon as its header is there.
        """
        start, buffer = self._position, self._buffer
        if len(buffer) - start < HEADER_LENGTH:
            return None
        length = checked_length(buffer, start)
        end = start + HEADER_LENGTH + length
        if len(buffer) < end:
            return None
        self._position = end
        return Record(buffer[start], bytes(buffer[start + HEADER_LENGTH : end]))


def checked_length(buffer: bytes | bytearray | memoryview, start: int) -> int:
    """Length of the fragment behind the header at `start`.

    Raises `UnexpectedMessage`, `MalformedMessage` or `RecordOverflow`; `legacy_record_version` is not
    looked at but for its first octet (RFC 8446 section 5.1).
    """
    content_type = buffer[start]
    if content_type not in _CONTENT_TYPES:
        raise UnexpectedMessage(f"a record of type {content_type}")
    if buffer[start + 1] != 3:
        raise MalformedMessage("what came is not a TLS record")
    length = buffer[start + 3] << 8 | buffer[start + 4]
    if length > MAX_FRAGMENT:
        raise RecordOverflow(f"a record of {length} octets came, the longest has {MAX_FRAGMENT}")
    return length


def plain_record(content_type: ContentType, fragment: bytes, version: int = ProtocolVersion.TLS_1_2) -> bytes:
    """A record in clear; `version` is `legacy_record_version`."""
    return bytes([content_type]) + version.to_bytes(2, "big") + len(fragment).to_bytes(2, "big") + fragment


class RecordProtection:
    """The AEAD of one direction: one key, one sequence number that never goes back.

    Used either for protecting or for opening. Raises `SequenceExhausted` instead of using the key for more
    records than its suite allows (RFC 8446 section 5.5).
    """

    __slots__ = ("_aead", "_is_tls13", "_iv", "_sequence", "suite")

    def __init__(self, suite: Suite, key: bytes, iv: bytes, sequence: int = 0) -> None:
        """`iv` has the fixed part of the nonce: 4 octets for GCM in TLS 1.2, otherwise 12."""
        self.suite = suite
        self._aead = suite.aead(key)
        self._iv = int.from_bytes(iv.ljust(NONCE_LENGTH, b"\0"), "big")
        self._is_tls13 = suite.version == ProtocolVersion.TLS_1_3
        self._sequence = sequence

    @classmethod
    def tls13(cls, suite: Suite, traffic_secret: bytes, sequence: int = 0) -> RecordProtection:
        """From a traffic secret (RFC 8446 section 7.3)."""
        return cls(suite, *traffic_keys(suite, traffic_secret), sequence)

    @classmethod
    def tls12(cls, suite: Suite, write_key_and_iv: bytes, sequence: int = 0) -> RecordProtection:
        """From write key || write IV (RFC 5246 section 6.3)."""
        key = write_key_and_iv[: suite.key_length]
        return cls(suite, key, write_key_and_iv[suite.key_length :], sequence)

    @property
    def sequence(self) -> int:
        """Sequence number of the next record."""
        return self._sequence

    @property
    def overhead(self) -> int:
        """Octets that protection adds to a plaintext, the header included."""
        return HEADER_LENGTH + self.suite.explicit_nonce_length + TAG_LENGTH + self._is_tls13

    def protect(self, content_type: int, plaintext: bytes | bytearray | memoryview) -> bytes:
        """One record, header included."""
        record = bytearray(len(plaintext) + self.overhead)
        self.protect_into(content_type, plaintext, memoryview(record))
        return bytes(record)

    def protect_into(
        self, content_type: int, plaintext: bytes | bytearray | memoryview, record: memoryview
    ) -> int:
        """Write one record to the start of `record`, which has room for it; gives its length."""
        sequence = self._next_sequence()
        length = len(plaintext) + self.overhead
        if self._is_tls13:
            self._protect_tls13(content_type, plaintext, record[:length], sequence)
        else:
            self._protect_tls12(content_type, plaintext, record[:length], sequence)
        return length

    def unprotect(self, record: Record) -> Record:
        """The content of a protected record; its content type is the real one.

        Raises `BadRecordMac`, `RecordOverflow`, or `UnexpectedMessage` for an inner plaintext of zeros only.
        """
        plaintext = bytearray(len(record.fragment))
        content_type, length = self.unprotect_into(record.content_type, record.fragment, plaintext)
        return Record(content_type, bytes(plaintext[:length]))

    def unprotect_into(
        self, content_type: int, fragment: bytes | memoryview, plaintext: bytearray | memoryview
    ) -> tuple[int, int]:
        """Write the content of a fragment to `plaintext`, which is as long as it; gives type and length."""
        length = len(fragment) - TAG_LENGTH - self.suite.explicit_nonce_length
        if length < self._is_tls13:
            raise BadRecordMac("a protected record is too short to be one")
        sequence = self._next_sequence()
        view = memoryview(plaintext)
        try:
            if self._is_tls13:
                self._open_tls13(content_type, fragment, view[:length], sequence)
            else:
                self._open_tls12(content_type, fragment, view[:length], sequence)
        except InvalidTag:
            raise BadRecordMac("a record does not verify under the key of this session") from None
        if self._is_tls13:
            content_type, length = _inner(view, length)
        if length > MAX_PLAINTEXT:
            raise RecordOverflow(f"a record holds {length} octets, the most is {MAX_PLAINTEXT}")
        return content_type, length

    def _protect_tls13(
        self, content_type: int, plaintext: bytes | bytearray | memoryview, record: memoryview, sequence: int
    ) -> None:
        end = HEADER_LENGTH + len(plaintext)
        record[:HEADER_LENGTH] = _header(ContentType.APPLICATION_DATA, len(record) - HEADER_LENGTH)
        inner = b"".join((plaintext, bytes([content_type]))) if len(plaintext) < 1024 else None
        if inner is None:
            record[HEADER_LENGTH:end] = plaintext
            record[end] = content_type
            inner = bytes(record[HEADER_LENGTH : end + 1])
        nonce = (self._iv ^ sequence).to_bytes(NONCE_LENGTH, "big")
        self._aead.encrypt_into(nonce, inner, record[:HEADER_LENGTH], record[HEADER_LENGTH:])

    def _protect_tls12(
        self, content_type: int, plaintext: bytes | bytearray | memoryview, record: memoryview, sequence: int
    ) -> None:
        record[:HEADER_LENGTH] = _header(content_type, len(record) - HEADER_LENGTH)
        body = record[HEADER_LENGTH:]
        explicit = self.suite.explicit_nonce_length
        body[:explicit] = sequence.to_bytes(8, "big")[:explicit]
        nonce = (self._iv ^ sequence).to_bytes(NONCE_LENGTH, "big")
        data = _associated_data(content_type, len(plaintext), sequence)
        self._aead.encrypt_into(nonce, plaintext, data, body[explicit:])

    def _open_tls13(
        self, content_type: int, fragment: bytes | memoryview, plaintext: memoryview, sequence: int
    ) -> None:
        nonce = (self._iv ^ sequence).to_bytes(NONCE_LENGTH, "big")
        self._aead.decrypt_into(nonce, fragment, _header(content_type, len(fragment)), plaintext)

    def _open_tls12(
        self, content_type: int, fragment: bytes | memoryview, plaintext: memoryview, sequence: int
    ) -> None:
        """RFC 5288 section 3: the explicit nonce of GCM is the peer's choice and comes with the record."""
        explicit = self.suite.explicit_nonce_length
        if explicit:
            nonce = (self._iv >> 64).to_bytes(4, "big") + bytes(fragment[:explicit])
        else:
            nonce = (self._iv ^ sequence).to_bytes(NONCE_LENGTH, "big")
        data = _associated_data(content_type, len(plaintext), sequence)
        self._aead.decrypt_into(nonce, fragment[explicit:], data, plaintext)

    def _next_sequence(self) -> int:
        sequence = self._sequence
        if sequence >= self.suite.record_limit:
            raise SequenceExhausted(f"one key has protected {sequence} records, the most allowed")
        self._sequence = sequence + 1
        return sequence


def _header(content_type: int, length: int) -> bytes:
    return bytes((content_type, 3, 3, length >> 8, length & 0xFF))


def _associated_data(content_type: int, length: int, sequence: int) -> bytes:
    """RFC 5246 section 6.2.3.3."""
    return sequence.to_bytes(8, "big") + _header(content_type, length)


def _inner(inner_plaintext: memoryview, length: int) -> tuple[int, int]:
    """TLSInnerPlaintext: content, type, zeros (RFC 8446 section 5.4)."""
    last = inner_plaintext[length - 1]
    if last:
        return last, length - 1
    stripped = bytes(inner_plaintext[:length]).rstrip(b"\0")
    if not stripped:
        raise UnexpectedMessage("a record without a content type")
    return stripped[-1], len(stripped) - 1
