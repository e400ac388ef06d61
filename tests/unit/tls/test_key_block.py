from __future__ import annotations

import dataclasses
import re

import pytest

from vmtoken.codec import DecodeError
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, ProtocolVersion
from vmtoken.tls.key_block import MAX_PLAINTEXT, KeyBlock

BLOCK = KeyBlock(
    version=ProtocolVersion.TLS_1_3,
    cipher_suite=CipherSuite.TLS_AES_128_GCM_SHA256,
    client_secret=SecretBytes(b"c" * 32),
    server_secret=SecretBytes(b"s" * 32),
    client_sequence=1,
    server_sequence=2,
    send_limit=100,
    receive_limit=MAX_PLAINTEXT,
)
ENCODED = (
    bytes.fromhex("0304 1301 0000000000000001 0000000000000002 0064 4000 20")
    + b"c" * 32
    + b"\x20"
    + b"s" * 32
)


def test_encoded_for_the_export_from_a_card() -> None:
    assert BLOCK.encode() == ENCODED
    assert KeyBlock.decode(ENCODED) == BLOCK


@pytest.mark.parametrize("length", range(len(ENCODED)))
def test_truncated(length: int) -> None:
    with pytest.raises(DecodeError):
        KeyBlock.decode(ENCODED[:length])


def test_tail() -> None:
    with pytest.raises(DecodeError, match="too many"):
        KeyBlock.decode(ENCODED + b"\x00")


def test_mutated() -> None:
    for position in range(len(ENCODED)):
        mutated = ENCODED[:position] + bytes((ENCODED[position] ^ 0x81,)) + ENCODED[position + 1 :]
        try:
            block = KeyBlock.decode(mutated)
        except DecodeError:
            continue
        assert block.encode() == mutated


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": ProtocolVersion.TLS_1_2}, "does not belong"),
        ({"cipher_suite": CipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, "does not belong"),
        ({"cipher_suite": CipherSuite.TLS_EMPTY_RENEGOTIATION_INFO_SCSV}, "does not belong"),
        ({"cipher_suite": CipherSuite.TLS_AES_256_GCM_SHA384}, "has 48 octets"),
        ({"client_secret": SecretBytes(bytes(31))}, "has 32 octets"),
        ({"server_secret": SecretBytes(bytes(33))}, "has 32 octets"),
        ({"client_sequence": -1}, "64 bits"),
        ({"server_sequence": 1 << 64}, "64 bits"),
        ({"send_limit": 62}, "63 to 16384"),
        ({"receive_limit": MAX_PLAINTEXT + 1}, "63 to 16384"),
    ],
)
def test_what_does_not_fit_together(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(BLOCK, **change)  # type: ignore[arg-type]


def test_secrets_are_not_printed() -> None:
    assert not re.search("cccc|ssss", repr(BLOCK))
