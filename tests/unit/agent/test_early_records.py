from __future__ import annotations

import pytest

from guest_agent.early_records import early_records
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, ContentType, ProtocolVersion
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.record import record_protection
from vmtoken.tls.suites import suite_of

BLOCKS = [
    KeyBlock(
        ProtocolVersion.TLS_1_3,
        CipherSuite.TLS_AES_128_GCM_SHA256,
        SecretBytes(bytes(32)),
        SecretBytes(b"s" * 32),
        client_sequence=0,
        server_sequence=0,
    ),
    KeyBlock(
        ProtocolVersion.TLS_1_2,
        CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        SecretBytes(bytes(20)),
        SecretBytes(b"s" * 20),
        client_sequence=1,
        server_sequence=1,
    ),
]
HANDSHAKE = b"\x16\x03\x03\x00\x04abcd" + b"\x14\x03\x03\x00\x01\x01" + b"\x17\x03\x03\x00\x20" + bytes(32)
each_block = pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.version.name)


def session_records(block: KeyBlock, *contents: bytes) -> list[bytes]:
    suite = suite_of(block.cipher_suite)
    assert suite is not None
    protection = record_protection(suite, block.server_secret.reveal(), block.server_sequence)
    return [bytes(protection.protect(ContentType.APPLICATION_DATA, content)) for content in contents]


@each_block
def test_last_flight_without_session_records_has_none(block: KeyBlock) -> None:
    assert early_records(block, b"") == b""
    assert early_records(block, HANDSHAKE) == b""


@each_block
def test_records_behind_the_handshake_are_those_of_the_session(block: KeyBlock) -> None:
    first, second = session_records(block, b"one", b"two")
    assert early_records(block, HANDSHAKE + first + second) == first + second
    assert early_records(block, first) == first


@each_block
def test_record_out_of_order_is_not_taken(block: KeyBlock) -> None:
    _, second = session_records(block, b"one", b"two")
    assert early_records(block, HANDSHAKE + second) == b""
