"""The TLS 1.3 key schedule: one type a stage, so that no secret is derived before its time.

             0
             |
   PSK -> Extract = EarlySecret ----> binder_key
             |
  ECDHE -> Extract = HandshakeSecret -> client / server_handshake_traffic_secret
             |
      0 -> Extract = MasterSecret ----> client / server_application_traffic_secret_0,
                                        exporter_master_secret, resumption_master_secret

RFC 8446 section 7.1.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import cache

from vmtoken.tls.suites import NONCE_LENGTH, Suite


def expand_label(hash_name: str, secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1)."""
    info = (
        length.to_bytes(2, "big")
        + bytes([6 + len(label)])
        + b"tls13 "
        + label
        + bytes([len(context)])
        + context
    )
    output = block = hmac.digest(secret, info + b"\x01", hash_name)
    counter = 1
    while len(output) < length:
        counter += 1
        block = hmac.digest(secret, block + info + bytes([counter]), hash_name)
        output += block
    return output[:length]


def traffic_keys(suite: Suite, traffic_secret: bytes) -> tuple[bytes, bytes]:
    """Write key and write IV of one direction (RFC 8446 section 7.3)."""
    key = expand_label(suite.hash_name, traffic_secret, b"key", b"", suite.key_length)
    return key, expand_label(suite.hash_name, traffic_secret, b"iv", b"", NONCE_LENGTH)


def next_traffic_secret(suite: Suite, traffic_secret: bytes) -> bytes:
    """application_traffic_secret_N+1 after a KeyUpdate (RFC 8446 section 7.2)."""
    return expand_label(suite.hash_name, traffic_secret, b"traffic upd", b"", suite.hash_length)


def finished_verify_data(suite: Suite, base_key: bytes, transcript_hash: bytes) -> bytes:
    """The content of Finished, or of a PSK binder (RFC 8446 sections 4.4.4 and 4.2.11.2)."""
    finished_key = expand_label(suite.hash_name, base_key, b"finished", b"", suite.hash_length)
    return hmac.digest(finished_key, transcript_hash, suite.hash_name)


def ticket_psk(suite: Suite, resumption_master_secret: bytes, ticket_nonce: bytes) -> bytes:
    """The PSK that belongs to a NewSessionTicket (RFC 8446 section 4.6.1)."""
    length = suite.hash_length
    return expand_label(suite.hash_name, resumption_master_secret, b"resumption", ticket_nonce, length)


def export_keying_material(
    suite: Suite, exporter_master_secret: bytes, label: str, context: bytes, length: int
) -> bytes:
    """RFC 8446 section 7.5."""
    hash_name = suite.hash_name
    secret = _derive(suite, exporter_master_secret, label.encode("ascii"), _empty_hash(hash_name))
    return expand_label(hash_name, secret, b"exporter", hashlib.new(hash_name, context).digest(), length)


class EarlySecret:
    """The first stage: with the PSK of a resumption, or without."""

    __slots__ = ("_secret", "_suite")

    def __init__(self, suite: Suite, psk: bytes | None = None) -> None:
        self._suite = suite
        zeros = bytes(suite.hash_length)
        self._secret = hmac.digest(zeros, psk or zeros, suite.hash_name)

    def binder(self, truncated_transcript_hash: bytes) -> bytes:
        """The binder of a PSK that came from a ticket (RFC 8446 section 4.2.11.2)."""
        binder_key = _derive(self._suite, self._secret, b"res binder", _empty_hash(self._suite.hash_name))
        return finished_verify_data(self._suite, binder_key, truncated_transcript_hash)

    def handshake_secret(self, shared_secret: bytes) -> HandshakeSecret:
        """Mix in the (EC)DHE shared secret."""
        return HandshakeSecret(self._suite, _next_stage(self._suite, self._secret, shared_secret))


class _Stage:
    """A stage gives secrets away by label and transcript; it does not show its own."""

    __slots__ = ("_secret", "_suite")

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self._suite = suite
        self._secret = secret

    def _secret_of(self, label: bytes, transcript_hash: bytes) -> bytes:
        return _derive(self._suite, self._secret, label, transcript_hash)


class HandshakeSecret(_Stage):
    """The second stage; transcripts are ClientHello...ServerHello."""

    __slots__ = ()

    def client_traffic_secret(self, transcript_hash: bytes) -> bytes:
        """client_handshake_traffic_secret: protects the client's flight."""
        return self._secret_of(b"c hs traffic", transcript_hash)

    def server_traffic_secret(self, transcript_hash: bytes) -> bytes:
        """server_handshake_traffic_secret: protects the server's flight from EncryptedExtensions on."""
        return self._secret_of(b"s hs traffic", transcript_hash)

    def master_secret(self) -> MasterSecret:
        """The last stage."""
        zeros = bytes(self._suite.hash_length)
        return MasterSecret(self._suite, _next_stage(self._suite, self._secret, zeros))


class MasterSecret(_Stage):
    """The last stage; transcripts end with the server's Finished, for resumption with the client's."""

    __slots__ = ()

    def client_traffic_secret(self, transcript_hash: bytes) -> bytes:
        """client_application_traffic_secret_0."""
        return self._secret_of(b"c ap traffic", transcript_hash)

    def server_traffic_secret(self, transcript_hash: bytes) -> bytes:
        """server_application_traffic_secret_0."""
        return self._secret_of(b"s ap traffic", transcript_hash)

    def exporter_secret(self, transcript_hash: bytes) -> bytes:
        """exporter_master_secret, for `export_keying_material`."""
        return self._secret_of(b"exp master", transcript_hash)

    def resumption_secret(self, transcript_hash: bytes) -> bytes:
        """resumption_master_secret, for `ticket_psk`."""
        return self._secret_of(b"res master", transcript_hash)


def _derive(suite: Suite, secret: bytes, label: bytes, transcript_hash: bytes) -> bytes:
    """Derive-Secret with the transcript hashed already (RFC 8446 section 7.1)."""
    return expand_label(suite.hash_name, secret, label, transcript_hash, suite.hash_length)


def _next_stage(suite: Suite, secret: bytes, input_keying_material: bytes) -> bytes:
    salt = _derive(suite, secret, b"derived", _empty_hash(suite.hash_name))
    return hmac.digest(salt, input_keying_material, suite.hash_name)


@cache
def _empty_hash(hash_name: str) -> bytes:
    return hashlib.new(hash_name).digest()
