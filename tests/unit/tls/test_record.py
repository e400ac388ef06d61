from __future__ import annotations

import dataclasses
import os

import pytest

from vmtoken.tls.codes import CipherSuite, ContentType, ProtocolVersion
from vmtoken.tls.errors import (
    BadRecordMac,
    MalformedMessage,
    RecordOverflow,
    SequenceExhausted,
    TooManyRecords,
    UnexpectedMessage,
)
from vmtoken.tls.key_block import MAX_PLAINTEXT
from vmtoken.tls.record import (
    CHANGE_CIPHER_SPEC_RECORD,
    HEADER_LENGTH,
    MAX_CIPHERTEXT,
    Alert,
    FloodGuard,
    NoProtection,
    RecordProtection,
    RecordReader,
    record_protection,
)
from vmtoken.tls.suites import Suite, suite_of

SUITES = [suite for code in CipherSuite if (suite := suite_of(code))]
TLS13 = [suite for suite in SUITES if suite.version == ProtocolVersion.TLS_1_3]
DATA = ContentType.APPLICATION_DATA

every_suite = pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.code.name)


def pair(
    suite: Suite, sequence: int = 0, limit: int = MAX_PLAINTEXT
) -> tuple[RecordProtection, RecordProtection]:
    secret = os.urandom(suite.secret_length)
    return record_protection(suite, secret, sequence, limit), record_protection(suite, secret, sequence)


def record(content_type: int, fragment: bytes, version: int = 0x0303) -> bytes:
    return bytes((content_type,)) + version.to_bytes(2, "big") + len(fragment).to_bytes(2, "big") + fragment


def split(octets: bytes | bytearray) -> list[bytes]:
    reader = RecordReader()
    records = [bytes(view) for view in reader.records(octets)]
    assert reader.held == b""
    return records


# Protection


@every_suite
@pytest.mark.parametrize("length", [0, 1, 100, MAX_PLAINTEXT])
def test_what_was_protected_is_unprotected(suite: Suite, length: int) -> None:
    sender, receiver = pair(suite, sequence=1)
    data = os.urandom(length)
    for content_type in (ContentType.HANDSHAKE, ContentType.ALERT, DATA):
        (one,) = split(sender.protect(content_type, data))
        assert data not in one or not data[1:]
        assert receiver.unprotect(one) == (content_type, data)
    assert sender.sequence == receiver.sequence == 4


@every_suite
def test_long_data_is_cut_at_the_limit(suite: Suite) -> None:
    sender, receiver = pair(suite, limit=100)
    data = os.urandom(250)
    records = split(sender.protect(DATA, data))
    assert [bytes(receiver.unprotect(one)[1]) for one in records] == [data[:100], data[100:200], data[200:]]


@every_suite
def test_any_changed_octet_is_noticed(suite: Suite) -> None:
    sender, receiver = pair(suite)
    one = bytes(sender.protect(DATA, b"data"))
    for position in (0, *range(HEADER_LENGTH, len(one))):
        changed = one[:position] + bytes((one[position] ^ 1,)) + one[position + 1 :]
        with pytest.raises((BadRecordMac, UnexpectedMessage)):
            receiver.unprotect(changed)
    assert receiver.sequence == 0
    assert receiver.unprotect(one) == (DATA, b"data")


@every_suite
def test_records_cannot_be_replayed_or_reordered(suite: Suite) -> None:
    sender, receiver = pair(suite)
    first, second = bytes(sender.protect(DATA, b"1")), bytes(sender.protect(DATA, b"2"))
    with pytest.raises(BadRecordMac):
        receiver.unprotect(second)
    receiver.unprotect(first)
    with pytest.raises(BadRecordMac):
        receiver.unprotect(first)


@every_suite
@pytest.mark.parametrize("length", [0, 1, 7, 8, 15, 16, 23])
def test_a_record_shorter_than_its_overhead(suite: Suite, length: int) -> None:
    _, receiver = pair(suite)
    with pytest.raises(BadRecordMac):
        receiver.unprotect(record(DATA, bytes(length)))


@every_suite
def test_plaintext_over_the_limit_is_refused(suite: Suite) -> None:
    sender, receiver = pair(suite)
    receiver.limit = 100
    receiver.unprotect(bytes(sender.protect(DATA, bytes(100))))
    with pytest.raises(RecordOverflow, match=r"holds 10[12] octets"):
        receiver.unprotect(bytes(sender.protect(DATA, bytes(101))))


@every_suite
def test_a_key_has_an_end(suite: Suite) -> None:
    sender, _ = pair(suite, sequence=suite.record_limit - 2)
    assert sender.records_left == 2
    with pytest.raises(SequenceExhausted):
        sender.protect(DATA, bytes(2 * MAX_PLAINTEXT + 1))
    assert sender.records_left == 2
    sender.protect(DATA, bytes(2 * MAX_PLAINTEXT))
    assert sender.records_left == 0
    with pytest.raises(SequenceExhausted):
        sender.protect(DATA, b"")


@pytest.mark.parametrize("suite", TLS13, ids=lambda suite: suite.code.name)
@pytest.mark.parametrize("padding", [0, 1, 1000])
def test_padding_is_taken_off(suite: Suite, padding: int) -> None:
    assert padded(suite, b"data", ContentType.HANDSHAKE, padding) == (ContentType.HANDSHAKE, b"data")
    assert padded(suite, b"", DATA, padding) == (DATA, b"")


@pytest.mark.parametrize("content_type", [0, 1, 19, 24, 255])
def test_an_inner_content_type_that_does_not_exist(content_type: int) -> None:
    with pytest.raises(UnexpectedMessage, match="without a content type"):
        padded(TLS13[0], b"data" if content_type else b"", content_type, 3)


def padded(suite: Suite, data: bytes, content_type: int, padding: int) -> tuple[int, memoryview]:
    """Protect as our sender never does."""
    secret = os.urandom(suite.secret_length)
    receiver = record_protection(suite, secret)
    inner = data + bytes((content_type,)) + bytes(padding)
    header = record(DATA, bytes(len(inner) + 16))[:HEADER_LENGTH]
    nonce = receiver._nonce(0)  # type: ignore[attr-defined]
    return receiver.unprotect(header + receiver._aead.encrypt(nonce, inner, header))  # type: ignore[attr-defined]


def test_a_record_in_clear_under_encryption() -> None:
    _, receiver = pair(TLS13[0])
    with pytest.raises(UnexpectedMessage, match="type 21 in clear"):
        receiver.unprotect(record(ContentType.ALERT, bytes(2) + bytes(30)))


def test_explicit_nonce_is_the_sequence_number() -> None:
    """RFC 5288 section 3: never twice the same under one key, not even that of the token's Finished (0)."""
    suite = suite_of(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
    assert suite is not None
    sender, receiver = pair(suite, sequence=1)
    records = split(sender.protect(DATA, bytes(3 * MAX_PLAINTEXT)))
    assert [int.from_bytes(one[5:13], "big") for one in records] == [1, 2, 3]
    assert all(receiver.unprotect(one)[0] == DATA for one in records)


def test_foreign_explicit_nonces_are_taken() -> None:
    """The peer chooses them as it likes; some choose random ones."""
    suite = suite_of(CipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384)
    assert suite is not None
    _, receiver = pair(suite)
    explicit = os.urandom(8)
    nonce = receiver._nonce_of(explicit)  # type: ignore[attr-defined]
    aad = bytes(8) + record(DATA, bytes(4))[:HEADER_LENGTH]
    ciphertext = receiver._aead.encrypt(nonce, b"data", aad)  # type: ignore[attr-defined]
    assert receiver.unprotect(record(DATA, explicit + ciphertext)) == (DATA, b"data")


def test_nothing_printable_is_secret() -> None:
    sender, _ = pair(TLS13[0])
    assert repr(sender).startswith("<")


def test_suites_do_not_share_a_limit_with_their_copies() -> None:
    short = dataclasses.replace(TLS13[0], record_limit=1)
    sender, _ = pair(short)
    sender.protect(DATA, b"")
    with pytest.raises(SequenceExhausted):
        sender.protect(DATA, b"")


# In clear


def test_in_clear() -> None:
    clear = NoProtection()
    assert clear.protect(ContentType.HANDSHAKE, b"\x01hello") == record(22, b"\x01hello", 0x0301)
    assert clear.protect(ContentType.HANDSHAKE, b"\x01again") == record(22, b"\x01again")
    assert NoProtection().protect(ContentType.ALERT, b"\x01\x00") == record(21, b"\x01\x00")
    assert clear.unprotect(record(22, b"abc", 0x0301)) == (22, b"abc")
    assert NoProtection(2).protect(22, b"abc") == record(22, b"ab") + record(22, b"c")
    with pytest.raises(RecordOverflow):
        clear.unprotect(record(22, bytes(MAX_PLAINTEXT + 1)))


def test_alert() -> None:
    assert Alert(2, 40).encode() == b"\x02\x28"
    assert Alert.decode(b"\x02\x28") == Alert(2, 40)
    for wrong in (b"", b"\x02", b"\x02\x28\x02\x28"):
        with pytest.raises(MalformedMessage, match="alert"):
            Alert.decode(wrong)


# Framing

RECORDS = [
    record(22, b"abc", 0x0301),
    record(20, b"\x01"),
    record(23, b""),
    record(23, bytes(MAX_CIPHERTEXT)),
]
STREAM = b"".join(RECORDS)
TAIL = record(21, b"\x02\x28")[:-1]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000, 16384, len(STREAM) + len(TAIL)])
def test_pieces_of_any_size(size: int) -> None:
    pulled, iterated = RecordReader(), RecordReader()
    from_pulled, from_iterated = [], []
    stream = STREAM + TAIL
    for start in range(0, len(stream), size):
        piece = stream[start : start + size]
        pulled.receive(piece)
        while (one := pulled.next_record()) is not None:
            from_pulled.append(one)
        from_iterated += [bytes(view) for view in iterated.records(piece)]
    assert from_pulled == from_iterated == RECORDS
    assert pulled.held == iterated.held == TAIL


@pytest.mark.parametrize("cut", range(1, len(RECORDS[0])))
def test_a_record_cut_anywhere_is_held(cut: int) -> None:
    reader = RecordReader()
    assert list(reader.records(RECORDS[0][:cut])) == []
    assert reader.held == RECORDS[0][:cut]
    assert [bytes(view) for view in reader.records(RECORDS[0][cut:] + RECORDS[1])] == RECORDS[:2]


def test_views_do_not_copy() -> None:
    data = bytearray(STREAM)
    (first, *_) = RecordReader().records(data)
    data[5] ^= 1
    assert first[5] == STREAM[5] ^ 1


@pytest.mark.parametrize(
    "start", ["HTTP/", "\x80\x2e\x01\x03\x01", "\x13\x03\x03\x00\x00", "\x19\x03\x03\x00\x00"]
)
def test_octets_that_are_no_tls(start: str) -> None:
    octets = start.encode("latin-1")
    with pytest.raises(UnexpectedMessage, match="starts no TLS record"):
        list(RecordReader().records(octets + bytes(100)))
    reader = RecordReader()
    reader.receive(octets)
    with pytest.raises(UnexpectedMessage, match="starts no TLS record"):
        reader.next_record()


def test_a_record_that_is_too_long_is_refused_by_its_header() -> None:
    header = record(23, bytes(MAX_CIPHERTEXT + 1))[:HEADER_LENGTH]
    with pytest.raises(RecordOverflow):
        list(RecordReader().records(header))
    reader = RecordReader()
    list(reader.records(header[:4]))
    with pytest.raises(RecordOverflow):
        list(reader.records(header[4:]))


def test_change_cipher_spec_is_one_record() -> None:
    assert split(CHANGE_CIPHER_SPEC_RECORD) == [record(20, b"\x01")]


# Floods


@pytest.mark.parametrize(
    ("event", "limit"),
    [("empty_record", 32), ("warning", 4), ("key_update", 32)],
)
def test_floods_end(event: str, limit: int) -> None:
    guard = FloodGuard()
    for _ in range(3):
        for _ in range(limit):
            getattr(guard, event)()
        guard.progress()
    for _ in range(limit):
        getattr(guard, event)()
    with pytest.raises(TooManyRecords, match=f"more than {limit}"):
        getattr(guard, event)()
