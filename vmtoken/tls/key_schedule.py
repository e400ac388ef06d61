"""The key schedule of TLS 1.3 (RFC 8446 section 7.1), one class a stage.

A stage can derive only what is due in it, and only a stage leads to the next:

    EarlySecret      PSK            -> binder
         | (EC)DHE
    HandshakeSecret                 -> handshake traffic secrets
         |
    MasterSecret                    -> application traffic, exporter, resumption secrets

A digest is always the Transcript-Hash up to the message that the RFC names for the secret.
"""

from __future__ import annotations

import functools
import hashlib
import hmac

from vmtoken.tls.suites import NONCE_LENGTH, Suite


class EarlySecret:
    """What a PSK gives; without one, the start of every full handshake."""

    __slots__ = ("_salt", "_secret", "_suite")

    def __init__(self, suite: Suite, psk: bytes | None = None) -> None:
        self._suite = suite
        zeros = bytes(suite.hash_length)
        self._secret = _extract(suite, zeros, zeros if psk is None else psk)
        self._salt: bytes | None = None

    @staticmethod
    @functools.cache
    def without_psk(suite: Suite) -> EarlySecret:
        """The start of every full handshake: a constant of the suite."""
        return EarlySecret(suite)

    def binder(self, digest: bytes, *, external: bool = False) -> bytes:
        """PskBinderEntry over the truncated ClientHello (section 4.2.11.2), external or of a ticket."""
        label = b"ext binder" if external else b"res binder"
        binder_key = derive_secret(self._suite, self._secret, label, _empty_digest(self._suite.hash_name))
        return finished_verify_data(self._suite, binder_key, digest)

    def handshake_secret(self, shared_secret: bytes) -> HandshakeSecret:
        """Mix in the result of the key exchange."""
        if self._salt is None:
            self._salt = _derived(self._suite, self._secret)
        return HandshakeSecret(self._suite, _extract(self._suite, self._salt, shared_secret))


class HandshakeSecret:
    """After the key exchange. `digest` is over ClientHello to ServerHello."""

    __slots__ = ("_secret", "_suite")

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self._suite = suite
        self._secret = secret

    def client_traffic_secret(self, digest: bytes) -> bytes:
        """client_handshake_traffic_secret."""
        return derive_secret(self._suite, self._secret, b"c hs traffic", digest)

    def server_traffic_secret(self, digest: bytes) -> bytes:
        """server_handshake_traffic_secret."""
        return derive_secret(self._suite, self._secret, b"s hs traffic", digest)

    def master_secret(self) -> MasterSecret:
        """The last stage."""
        suite = self._suite
        return MasterSecret(suite, _extract(suite, _derived(suite, self._secret), bytes(suite.hash_length)))


class MasterSecret:
    """After the server's Finished. `digest` is over ClientHello to server Finished, or as said."""

    __slots__ = ("_secret", "_suite")

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self._suite = suite
        self._secret = secret

    def client_traffic_secret(self, digest: bytes) -> bytes:
        """client_application_traffic_secret_0."""
        return derive_secret(self._suite, self._secret, b"c ap traffic", digest)

    def server_traffic_secret(self, digest: bytes) -> bytes:
        """server_application_traffic_secret_0."""
        return derive_secret(self._suite, self._secret, b"s ap traffic", digest)

    def exporter_secret(self, digest: bytes) -> bytes:
        """exporter_master_secret, for `export_keying_material`."""
        return derive_secret(self._suite, self._secret, b"exp master", digest)

    def resumption_secret(self, digest: bytes) -> bytes:
        """resumption_master_secret, for `ticket_psk`; `digest` goes up to the client's Finished."""
        return derive_secret(self._suite, self._secret, b"res master", digest)


def finished_verify_data(suite: Suite, base_key: bytes, digest: bytes) -> bytes:
    """`verify_data` of a Finished whose sender uses this handshake traffic secret (section 4.4.4)."""
    finished_key = expand_label(suite, base_key, b"finished", b"", suite.hash_length)
    return hmac.digest(finished_key, digest, suite.hash_name)


def ticket_psk(suite: Suite, resumption_secret: bytes, ticket_nonce: bytes) -> bytes:
    """The PSK that belongs to a ticket (section 4.6.1)."""
    return expand_label(suite, resumption_secret, b"resumption", ticket_nonce, suite.hash_length)


def traffic_keys(suite: Suite, traffic_secret: bytes) -> tuple[bytes, bytes]:
    """Write key and write IV of a traffic secret (section 7.3)."""
    key = expand_label(suite, traffic_secret, b"key", b"", suite.key_length)
    return key, expand_label(suite, traffic_secret, b"iv", b"", NONCE_LENGTH)


def next_traffic_secret(suite: Suite, traffic_secret: bytes) -> bytes:
    """application_traffic_secret_N+1, after a KeyUpdate (section 7.2)."""
    return expand_label(suite, traffic_secret, b"traffic upd", b"", suite.hash_length)


def export_keying_material(
    suite: Suite, exporter_secret: bytes, label: str, context: bytes, length: int
) -> bytes:
    """TLS-Exporter (section 7.5); no context is the empty one."""
    secret = derive_secret(suite, exporter_secret, label.encode("ascii"), _empty_digest(suite.hash_name))
    digest = hashlib.new(suite.hash_name, context).digest()
    return expand_label(suite, secret, b"exporter", digest, length)


def derive_secret(suite: Suite, secret: bytes, label: bytes, digest: bytes) -> bytes:
    """Derive-Secret, with the Transcript-Hash already taken."""
    return expand_label(suite, secret, label, digest, suite.hash_length)


def expand_label(suite: Suite, secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """HKDF-Expand-Label."""
    info = _label_prefix(label, length) + len(context).to_bytes(1, "big") + context
    block = hmac.digest(secret, info + b"\x01", suite.hash_name)
    if length <= len(block):
        return block[:length]
    return _expand(suite, secret, info, length)


def _expand(suite: Suite, secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869 section 2.3); only exporters need more than one block."""
    if length > 255 * suite.hash_length:
        raise ValueError(f"HKDF gives at most {255 * suite.hash_length} octets")
    output, block = b"", b""
    for counter in range(1, -(-length // suite.hash_length) + 1):
        block = hmac.digest(secret, block + info + bytes((counter,)), suite.hash_name)
        output += block
    return output[:length]


def _extract(suite: Suite, salt: bytes, key_material: bytes) -> bytes:
    return hmac.digest(salt, key_material, suite.hash_name)


def _derived(suite: Suite, secret: bytes) -> bytes:
    """The salt that one stage gives to the next."""
    return derive_secret(suite, secret, b"derived", _empty_digest(suite.hash_name))


@functools.cache
def _empty_digest(hash_name: str) -> bytes:
    return hashlib.new(hash_name).digest()


@functools.lru_cache(maxsize=64)
def _label_prefix(label: bytes, length: int) -> bytes:
    """HkdfLabel up to its context. Cached: a connection uses the same dozen; exporters may add others."""
    full = b"tls13 " + label
    return length.to_bytes(2, "big") + len(full).to_bytes(1, "big") + full
