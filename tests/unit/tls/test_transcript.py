from __future__ import annotations

import hashlib

import pytest

from vmtoken.tls.codes import CipherSuite
from vmtoken.tls.suites import Suite, suite_of
from vmtoken.tls.transcript import TranscriptBuffer

SUITES = [suite_of(CipherSuite.TLS_AES_128_GCM_SHA256), suite_of(CipherSuite.TLS_AES_256_GCM_SHA384)]

both = pytest.mark.parametrize("suite", SUITES, ids=["sha256", "sha384"])


def digest(suite: Suite, octets: bytes) -> bytes:
    return hashlib.new(suite.hash_name, octets).digest()


@both
def test_the_hash_is_over_all_messages_so_far(suite: Suite) -> None:
    buffer = TranscriptBuffer()
    buffer.add(b"one")
    buffer.add(b"two")
    assert buffer.digest(suite) == digest(suite, b"onetwo")
    assert buffer.digest_with(suite, b"thr") == digest(suite, b"onetwothr")
    transcript = buffer.transcript(suite)
    assert transcript.digest() == digest(suite, b"onetwo")
    transcript.add(b"three")
    assert transcript.digest() == transcript.digest() == digest(suite, b"onetwothree")


@both
def test_a_retry_replaces_the_first_hello_by_its_hash(suite: Suite) -> None:
    """RFC 8446 section 4.4.1."""
    buffer = TranscriptBuffer()
    buffer.add(b"hello")
    buffer.replace_by_hash(suite)
    buffer.add(b"retry")
    synthetic = b"\xfe\x00\x00" + bytes((suite.hash_length,)) + digest(suite, b"hello")
    assert buffer.digest(suite) == digest(suite, synthetic + b"retry")
