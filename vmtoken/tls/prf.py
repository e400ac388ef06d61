"""TLS 1.2: the PRF, the master secret, the key block and what is computed from them."""

from __future__ import annotations

import hmac

from vmtoken.tls.suites import Suite

MASTER_SECRET_LENGTH = 48
"""Octets of the master secret (RFC 5246 section 8.1)."""

VERIFY_DATA_LENGTH = 12
"""Octets of `verify_data` in every suite of ours (RFC 5246 section 7.4.9)."""


def prf(hash_name: str, secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    """PRF(secret, label, seed) cut to `length` octets (RFC 5246 section 5)."""
    label_and_seed = label + seed
    a = label_and_seed
    output = b""
    while len(output) < length:
        a = hmac.digest(secret, a, hash_name)
        output += hmac.digest(secret, a + label_and_seed, hash_name)
    return output[:length]


def extended_master_secret(hash_name: str, premaster_secret: bytes, session_hash: bytes) -> bytes:
    """RFC 7627 section 4; `session_hash` covers the messages up to ClientKeyExchange."""
    return prf(hash_name, premaster_secret, b"extended master secret", session_hash, MASTER_SECRET_LENGTH)


def key_block(
    suite: Suite, master_secret: bytes, client_random: bytes, server_random: bytes
) -> tuple[bytes, bytes]:
    """Write key || write IV of the client and of the server (RFC 5246 section 6.3; AEAD has no MAC keys)."""
    key, iv = suite.key_length, suite.fixed_iv_length
    seed = server_random + client_random
    block = prf(suite.hash_name, master_secret, b"key expansion", seed, 2 * (key + iv))
    client_key, server_key = block[:key], block[key : 2 * key]
    client_iv, server_iv = block[2 * key : 2 * key + iv], block[2 * key + iv :]
    return client_key + client_iv, server_key + server_iv


def client_verify_data(hash_name: str, master_secret: bytes, transcript_hash: bytes) -> bytes:
    """The content of the client's Finished (RFC 5246 section 7.4.9)."""
    return prf(hash_name, master_secret, b"client finished", transcript_hash, VERIFY_DATA_LENGTH)


def server_verify_data(hash_name: str, master_secret: bytes, transcript_hash: bytes) -> bytes:
    """The content of the server's Finished (RFC 5246 section 7.4.9)."""
    return prf(hash_name, master_secret, b"server finished", transcript_hash, VERIFY_DATA_LENGTH)


def export_keying_material(
    hash_name: str,
    master_secret: bytes,
    client_random: bytes,
    server_random: bytes,
    label: str,
    context: bytes | None,
    length: int,
) -> bytes:
    """RFC 5705 section 4; no context is not the same as an empty one."""
    seed = client_random + server_random
    if context is not None:
        seed += len(context).to_bytes(2, "big") + context
    return prf(hash_name, master_secret, label.encode("ascii"), seed, length)
