"""Records: framing, and protection of one direction under one key (RFC 8446, RFC 5246)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Protocol, Self

from cryptography.exceptions import InvalidTag

from vmtoken.tls.codes import ContentType, ProtocolVersion
from vmtoken.tls.errors import (
    BadRecordMac,
    MalformedMessage,
    RecordOverflow,
    SequenceExhausted,
    TooManyRecords,
    UnexpectedMessage,
)
from vmtoken.tls.key_block import MAX_PLAINTEXT
from vmtoken.tls.key_schedule import traffic_keys
from vmtoken.tls.suites import NONCE_LENGTH, TAG_LENGTH, Suite

Octets = bytes | bytearray | memoryview

HEADER_LENGTH = 5
"""Octets of a record before its fragment: content type, version, length."""

MAX_CIPHERTEXT = MAX_PLAINTEXT + 256
"""Octets of the longest fragment (RFC 8446 section 5.2). Our AEADs in TLS 1.2 add at most 24."""

CHANGE_CIPHER_SPEC_RECORD = b"\x14\x03\x03\x00\x01\x01"
"""The only change_cipher_spec there is."""


class RecordReader:
    """Cuts a byte stream into records. Only what a record lacks to be whole is ever held."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def held(self) -> bytes:
        """What was received and not given out yet."""
        return bytes(self._held)

    @property
    def held_length(self) -> int:
        """How many octets that is."""
        return len(self._held)

    def receive(self, data: Octets) -> None:
        """Take octets, for `next_record`."""
        self._held += data

    def next_record(self) -> bytes | None:
        """The next whole record, with its header; None until more has come.

        Raises `UnexpectedMessage` for octets that are no TLS record, `RecordOverflow`.
        """
        length = _record_length(self._held, 0, len(self._held))
        if not length:
            return None
        record = bytes(self._held[:length])
        del self._held[:length]
        return record

    def records(self, data: Octets) -> Iterator[memoryview]:
        """The whole records of what is held and `data`, without copying more than a record that was cut.

        A view is good until the next one is asked for. What is left over is held. Raises as `next_record`.
        """
        view = memoryview(data)
        start = 0
        if self._held:
            start = self._top_up(view)
            if not _record_length(self._held, 0, len(self._held)):
                return
            held, self._held = self._held, bytearray()
            yield memoryview(held)
        end = len(view)
        while end - start >= HEADER_LENGTH:
            record_end = start + HEADER_LENGTH + _fragment_length(view, start)
            if record_end > end:
                break
            yield view[start:record_end]
            start = record_end
        self._held += view[start:]

    def _top_up(self, view: memoryview) -> int:
        """Add to the held record what it lacks, header first; how much of `view` that took."""
        taken = max(0, min(HEADER_LENGTH - len(self._held), len(view)))
        self._held += view[:taken]
        if len(self._held) < HEADER_LENGTH:
            return taken
        lacking = _fragment_length(self._held, 0) + HEADER_LENGTH - len(self._held)
        self._held += view[taken : taken + lacking]
        return taken + lacking


class RecordProtection(Protocol):
    """One direction of a connection, under one key."""

    limit: int
    """Octets of the longest plaintext: `protect` cuts what is longer, `unprotect` refuses it (RFC 8449)."""

    @property
    def sequence(self) -> int:
        """Number of the next record."""
        ...

    @property
    def records_left(self) -> int:
        """How many more records this key may protect (RFC 8446 section 5.5)."""
        ...

    def protect(self, content_type: int, data: Octets) -> bytearray:
        """One or more whole records for `data`; raises `SequenceExhausted` before anything is protected."""
        ...

    def unprotect(self, record: Octets) -> tuple[int, memoryview]:
        """Content type and plaintext of one whole record.

        Raises `BadRecordMac`, `RecordOverflow`, `UnexpectedMessage`.
        """
        ...


def record_protection(
    suite: Suite, secret: bytes, sequence: int = 0, limit: int = MAX_PLAINTEXT
) -> AeadProtection:
    """The protection that a secret gives: a traffic secret in TLS 1.3, write key || write IV in TLS 1.2."""
    if suite.version == ProtocolVersion.TLS_1_3:
        key, iv = traffic_keys(suite, secret)
        return _Protection13(suite, key, iv, sequence, limit)
    key, iv = secret[: suite.key_length], secret[suite.key_length :]
    if suite.explicit_nonce_length:
        return _Protection12Explicit(suite, key, iv, sequence, limit)
    return _Protection12(suite, key, iv, sequence, limit)


class NoProtection:
    """Records in clear, at the start of a handshake."""

    __slots__ = ("limit", "sequence")

    records_left = 1 << 62

    def __init__(self, limit: int = MAX_PLAINTEXT) -> None:
        self.limit = limit
        self.sequence = 0

    def protect(self, content_type: int, data: Octets) -> bytearray:
        """Whole records for `data`."""
        view = memoryview(data)
        output = bytearray()
        for start in range(0, len(view) or 1, self.limit):
            piece = view[start : start + self.limit]
            output += _HEADER.pack(content_type, self._version(content_type, view), len(piece))
            output += piece
        self.sequence += 1
        return output

    def unprotect(self, record: Octets) -> tuple[int, memoryview]:
        """Content type and content; raises `RecordOverflow`."""
        fragment = memoryview(record)[HEADER_LENGTH:]
        if len(fragment) > MAX_PLAINTEXT:
            raise RecordOverflow(f"a record in clear holds {len(fragment)} octets")
        return record[0], fragment

    def _version(self, content_type: int, content: memoryview) -> int:
        """TLS 1.0 for an initial ClientHello, as old middleboxes want it (RFC 8446 section 5.1)."""
        is_hello = content_type == ContentType.HANDSHAKE and bytes(content[:1]) == b"\x01"
        return _TLS_1_0 if is_hello and self.sequence == 0 else ProtocolVersion.TLS_1_2


@dataclass(frozen=True, slots=True)
class Alert:
    """RFC 8446 section 6: the content of an alert record."""

    level: int
    description: int

    def encode(self) -> bytes:
        """Two octets."""
        return bytes((self.level, self.description))

    @classmethod
    def decode(cls, fragment: bytes | memoryview) -> Self:
        """Exactly one alert in a record (RFC 8446 section 5.1); raises `MalformedMessage`."""
        if len(fragment) != 2:
            raise MalformedMessage(f"an alert record of {len(fragment)} octets")
        return cls(fragment[0], fragment[1])


class FloodGuard:
    """Counts what a peer may send without getting anywhere; raises `TooManyRecords`.

    The numbers are those of BoringSSL: far more than anybody sends in earnest, too few to cost time.
    """

    __slots__ = ("_empty_records", "_key_updates", "_warnings")

    MAX_EMPTY_RECORDS = 32
    MAX_WARNINGS = 4
    MAX_KEY_UPDATES = 32

    def __init__(self) -> None:
        self.progress()

    def progress(self) -> None:
        """The peer sent something of use: counting starts again."""
        self._empty_records = self._warnings = self._key_updates = 0

    def empty_record(self) -> None:
        """A record without content came."""
        self._empty_records += 1
        if self._empty_records > self.MAX_EMPTY_RECORDS:
            raise TooManyRecords(f"more than {self.MAX_EMPTY_RECORDS} empty records in a row")

    def warning(self) -> None:
        """An alert came that does not end the connection."""
        self._warnings += 1
        if self._warnings > self.MAX_WARNINGS:
            raise TooManyRecords(f"more than {self.MAX_WARNINGS} warning alerts in a row")

    def key_update(self) -> None:
        """A KeyUpdate came."""
        self._key_updates += 1
        if self._key_updates > self.MAX_KEY_UPDATES:
            raise TooManyRecords(f"more than {self.MAX_KEY_UPDATES} key updates without data between them")


_TLS_1_0 = 0x0301

_HEADER = Struct("!BHH")
_AAD12 = Struct("!QBHH")

# Plain integers: an enum member costs a tenth of a microsecond to look up, and a record has many.
_APPLICATION_DATA = int(ContentType.APPLICATION_DATA)
_TLS_1_2 = int(ProtocolVersion.TLS_1_2)
_CONTENT_TYPES = frozenset(map(int, ContentType))
_TYPE_OCTETS = {content_type: bytes((content_type,)) for content_type in _CONTENT_TYPES}
_UNPADDED = frozenset(_TYPE_OCTETS.values())


def _fragment_length(octets: bytearray | memoryview, start: int) -> int:
    """Length of a fragment from its header, which must be whole; raises if no record starts like that."""
    length: int
    content_type, version, length = _HEADER.unpack_from(octets, start)
    if content_type not in _CONTENT_TYPES or version >> 8 != 3:
        header = bytes(octets[start : start + HEADER_LENGTH]).hex()
        raise UnexpectedMessage(f"{header}, which starts no TLS record,")
    if length > MAX_CIPHERTEXT:
        raise RecordOverflow(f"a record of {length} octets, more than the {MAX_CIPHERTEXT} of RFC 8446")
    return length


def _record_length(octets: bytearray | memoryview, start: int, end: int) -> int:
    """Length of the whole record at `start`, 0 if it is not whole."""
    if end - start < HEADER_LENGTH:
        return 0
    length = HEADER_LENGTH + _fragment_length(octets, start)
    return length if end - start >= length else 0


class AeadProtection:
    """What both versions have in common: a key, a number for each record, an end."""

    __slots__ = ("_aead", "_iv", "_sequence", "_suite", "limit")

    overhead: int
    """Octets of a record besides its plaintext."""

    def __init__(self, suite: Suite, key: bytes, iv: bytes, sequence: int, limit: int) -> None:
        self._suite = suite
        self._aead = suite.aead(key)
        self._iv = int.from_bytes(iv, "big")
        self._sequence = sequence
        self.limit = limit

    @property
    def sequence(self) -> int:
        """Number of the next record."""
        return self._sequence

    @property
    def records_left(self) -> int:
        """How many more records this key may protect."""
        return max(0, self._suite.record_limit - self._sequence)

    def unprotect(self, record: Octets) -> tuple[int, memoryview]:
        """Content type and plaintext of one whole record."""
        room = memoryview(bytearray(len(record)))
        content_type, length = self.unprotect_into(memoryview(record), room, 0)
        return content_type, room[:length]

    def unprotect_into(self, record: memoryview, room: memoryview, start: int) -> tuple[int, int]:
        """Content type and length of the plaintext of one whole record, which goes to `room` from `start` on.

        `room` needs as many octets as the record, and is written to further than the plaintext goes.
        """
        raise NotImplementedError

    def protect(self, content_type: int, data: Octets) -> bytearray:
        """One or more whole records for `data`."""
        view = memoryview(data)
        limit, overhead = self.limit, self.overhead
        count = -(-len(view) // limit) or 1
        if count > self.records_left:
            raise SequenceExhausted("the key of the sending direction is used up")
        output = bytearray(len(view) + count * overhead)
        with memoryview(output) as room:
            start = end = 0
            for _ in range(count):
                piece = view[start : start + limit]
                start += limit
                record_end = end + len(piece) + overhead
                self._seal(content_type, piece, room[end:record_end])
                end = record_end
        return output

    def _seal(self, content_type: int, piece: memoryview, room: memoryview) -> None:
        raise NotImplementedError

    def _open(self, nonce: bytes, ciphertext: memoryview, aad: bytes | memoryview, room: memoryview) -> None:
        """Decrypt, count; nothing that does not verify is left in `room`."""
        if len(ciphertext) < TAG_LENGTH:
            raise BadRecordMac("a record is shorter than its tag")
        try:
            self._aead.decrypt_into(nonce, ciphertext, aad, room)
        except InvalidTag:
            room[:] = bytes(len(room))
            raise BadRecordMac("a record does not decrypt: it was changed on the way") from None
        self._sequence += 1

    def _nonce(self, sequence: int) -> bytes:
        """RFC 8446 section 5.3, RFC 7905 section 2."""
        return (self._iv ^ sequence).to_bytes(NONCE_LENGTH, "big")


class _Protection13(AeadProtection):
    """RFC 8446 section 5.2."""

    __slots__ = ()

    overhead = HEADER_LENGTH + 1 + TAG_LENGTH

    def unprotect_into(self, record: memoryview, room: memoryview, start: int) -> tuple[int, int]:
        """The outer type must be application_data; padding is taken off."""
        if record[0] != _APPLICATION_DATA:
            raise UnexpectedMessage(f"a record of type {record[0]} in clear where records are encrypted")
        length = len(record) - HEADER_LENGTH - TAG_LENGTH
        if length > self.limit + 1:
            raise RecordOverflow(f"a record holds {length} octets, more than {self.limit} and its type")
        nonce = (self._iv ^ self._sequence).to_bytes(NONCE_LENGTH, "big")
        inner = room[start : start + length]
        self._open(nonce, record[HEADER_LENGTH:], record[:HEADER_LENGTH], inner)
        if length and inner[-1] in _CONTENT_TYPES:
            return inner[-1], length - 1
        end = len(bytes(inner).rstrip(b"\x00"))
        if not end or inner[end - 1] not in _CONTENT_TYPES:
            raise UnexpectedMessage("a record without a content type")
        return inner[end - 1], end - 1

    def _seal(self, content_type: int, piece: memoryview, room: memoryview) -> None:
        header = _HEADER.pack(_APPLICATION_DATA, _TLS_1_2, len(piece) + 1 + TAG_LENGTH)
        room[:HEADER_LENGTH] = header
        nonce = (self._iv ^ self._sequence).to_bytes(NONCE_LENGTH, "big")
        inner = b"".join((piece, _TYPE_OCTETS[content_type]))
        self._aead.encrypt_into(nonce, inner, header, room[HEADER_LENGTH:])
        self._sequence += 1


class _Protection12(AeadProtection):
    """RFC 5246 section 6.2.3.3 with the nonce of RFC 7905: nothing of it is on the wire."""

    __slots__ = ()

    overhead = HEADER_LENGTH + TAG_LENGTH

    def unprotect_into(self, record: memoryview, room: memoryview, start: int) -> tuple[int, int]:
        """Content type and version are in clear, and authenticated."""
        length = len(record) - self.overhead
        if length > self.limit:
            raise RecordOverflow(f"a record holds {length} octets, more than {self.limit}")
        content_type, version, _ = _HEADER.unpack_from(record)
        aad = _AAD12.pack(self._sequence, content_type, version, max(0, length))
        prefix = self.overhead - TAG_LENGTH
        plaintext = room[start : start + max(0, length)]
        self._open(self._received_nonce(record), record[prefix:], aad, plaintext)
        return content_type, length

    def _received_nonce(self, record: memoryview) -> bytes:
        return self._nonce(self._sequence)

    def _seal(self, content_type: int, piece: memoryview, room: memoryview) -> None:
        prefix = self.overhead - TAG_LENGTH
        sequence = self._sequence
        room[:prefix] = self._prefix(content_type, len(room) - HEADER_LENGTH)
        aad = _AAD12.pack(sequence, content_type, _TLS_1_2, len(piece))
        self._aead.encrypt_into(self._nonce(sequence), piece, aad, room[prefix:])
        self._sequence += 1

    def _prefix(self, content_type: int, fragment_length: int) -> bytes:
        return _HEADER.pack(content_type, _TLS_1_2, fragment_length)


class _Protection12Explicit(_Protection12):
    """The same with the nonce of RFC 5288: four octets of salt, then eight that go with the record.

    They are the sequence number, so that no record shares its nonce with the Finished that a token sent.
    """

    __slots__ = ()

    overhead = HEADER_LENGTH + 8 + TAG_LENGTH

    def _received_nonce(self, record: memoryview) -> bytes:
        return self._nonce_of(bytes(record[HEADER_LENGTH : HEADER_LENGTH + 8]))

    def _nonce(self, sequence: int) -> bytes:
        return self._nonce_of(sequence.to_bytes(8, "big"))

    def _nonce_of(self, explicit: bytes) -> bytes:
        return self._iv.to_bytes(4, "big") + explicit

    def _prefix(self, content_type: int, fragment_length: int) -> bytes:
        return super()._prefix(content_type, fragment_length) + self._sequence.to_bytes(8, "big")
