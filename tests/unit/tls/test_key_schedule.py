"""What RFC 8448 does not show; the rest is in test_rfc8448.py."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from vmtoken.tls.codes import CipherSuite
from vmtoken.tls.key_schedule import (
    EarlySecret,
    derive_secret,
    expand_label,
    export_keying_material,
    next_traffic_secret,
    traffic_keys,
)
from vmtoken.tls.suites import Suite, suite_of

SHA_256 = suite_of(CipherSuite.TLS_CHACHA20_POLY1305_SHA256)
SHA_384 = suite_of(CipherSuite.TLS_AES_256_GCM_SHA384)
assert SHA_256 is not None
assert SHA_384 is not None

both = pytest.mark.parametrize("suite", [SHA_256, SHA_384], ids=lambda suite: suite.hash_name)


def reference(suite: Suite, secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """RFC 8446 section 7.1, with the HKDF of another library."""
    algorithm = hashes.SHA256() if suite.hash_length == 32 else hashes.SHA384()
    full = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes((len(full),)) + full + bytes((len(context),)) + context
    return HKDFExpand(algorithm, length, info).derive(secret)


@both
@pytest.mark.parametrize("length", [1, 12, 32, 48, 49, 64, 65, 128, 1000])
def test_expand_label(suite: Suite, length: int) -> None:
    secret = bytes(range(suite.hash_length))
    expected = reference(suite, secret, b"label", b"context", length)
    assert expand_label(suite, secret, b"label", b"context", length) == expected


@both
def test_expand_label_has_an_end(suite: Suite) -> None:
    most = 255 * suite.hash_length
    assert len(expand_label(suite, b"secret", b"label", b"", most)) == most
    with pytest.raises(ValueError, match="at most"):
        expand_label(suite, b"secret", b"label", b"", most + 1)


@both
def test_exporter(suite: Suite) -> None:
    secret = bytes(suite.hash_length)
    hashed = getattr(hashlib, suite.hash_name)
    derived = reference(suite, secret, b"EXPORTER_x", hashed().digest(), suite.hash_length)
    expected = reference(suite, derived, b"exporter", hashed(b"context").digest(), 128)
    assert export_keying_material(suite, secret, "EXPORTER_x", b"context", 128) == expected


@both
def test_key_update(suite: Suite) -> None:
    secret = bytes(suite.hash_length)
    following = next_traffic_secret(suite, secret)
    assert following == reference(suite, secret, b"traffic upd", b"", suite.hash_length)
    assert [len(part) for part in traffic_keys(suite, following)] == [32, 12]


@both
def test_binders_of_tickets_and_of_external_psks_differ(suite: Suite) -> None:
    early = EarlySecret(suite, b"psk")
    assert early.binder(b"digest") != early.binder(b"digest", external=True)


@both
def test_no_psk_is_a_psk_of_zeros(suite: Suite) -> None:
    def secret(early: EarlySecret) -> bytes:
        return early.handshake_secret(b"shared").client_traffic_secret(b"digest")

    assert secret(EarlySecret(suite)) == secret(EarlySecret(suite, bytes(suite.hash_length)))
    assert secret(EarlySecret(suite)) != secret(EarlySecret(suite, b"psk"))


def test_stages_do_not_print_their_secrets() -> None:
    early = EarlySecret(SHA_256, b"psk")
    for stage in (early, early.handshake_secret(b"x"), early.handshake_secret(b"x").master_secret()):
        assert repr(stage).startswith("<vmtoken.")


def test_derive_secret_is_expand_label_with_a_digest() -> None:
    assert derive_secret(SHA_384, b"s", b"l", b"d") == reference_short(b"s", b"l", b"d")


def reference_short(secret: bytes, label: bytes, digest: bytes) -> bytes:
    return reference(SHA_384, secret, label, digest, 48)
