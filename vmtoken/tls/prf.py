"""TLS 1.2: PRF, extended master secret, key block, Finished, exporter (RFC 5246, 7627, 5705)."""

from __future__ import annotations

import hmac

from vmtoken.tls.suites import Suite

MASTER_SECRET_LENGTH = 48
VERIFY_DATA_LENGTH = 12
"""Octets of `verify_data` (RFC 5246 section 7.4.9): none of our suites says otherwise."""


def prf(suite: Suite, secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    """PRF(secret, label, seed) = P_hash(secret, label + seed), RFC 5246 section 5."""
    seed = label + seed
    output, a = b"", seed
    while len(output) < length:
        a = hmac.digest(secret, a, suite.hash_name)
        output += hmac.digest(secret, a + seed, suite.hash_name)
    return output[:length]


def extended_master_secret(suite: Suite, premaster_secret: bytes, session_hash: bytes) -> bytes:
    """RFC 7627 section 4; `session_hash` is over ClientHello to ClientKeyExchange."""
    return prf(suite, premaster_secret, b"extended master secret", session_hash, MASTER_SECRET_LENGTH)


def record_secrets(
    suite: Suite, master_secret: bytes, client_random: bytes, server_random: bytes
) -> tuple[bytes, bytes]:
    """Write key || write IV of client and server, cut out of the key block of RFC 5246 section 6.3."""
    key, iv = suite.key_length, suite.fixed_iv_length
    block = prf(suite, master_secret, b"key expansion", server_random + client_random, 2 * (key + iv))
    client_key, server_key = block[:key], block[key : 2 * key]
    client_iv, server_iv = block[2 * key : 2 * key + iv], block[2 * key + iv :]
    return client_key + client_iv, server_key + server_iv


def client_verify_data(suite: Suite, master_secret: bytes, digest: bytes) -> bytes:
    """`verify_data` of the client's Finished; `digest` is over all messages before it."""
    return prf(suite, master_secret, b"client finished", digest, VERIFY_DATA_LENGTH)


def server_verify_data(suite: Suite, master_secret: bytes, digest: bytes) -> bytes:
    """`verify_data` of the server's Finished; `digest` is over all messages before it."""
    return prf(suite, master_secret, b"server finished", digest, VERIFY_DATA_LENGTH)


def export_keying_material(
    suite: Suite,
    master_secret: bytes,
    label: str,
    client_random: bytes,
    server_random: bytes,
    context: bytes | None,
    length: int,
) -> bytes:
    """RFC 5705 section 4; no context and an empty one differ."""
    seed = client_random + server_random
    if context is not None:
        seed += len(context).to_bytes(2, "big") + context
    return prf(suite, master_secret, label.encode("ascii"), seed, length)
