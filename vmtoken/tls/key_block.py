"""The key block: what leaves a token at the end of a handshake, the keys of one session and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from vmtoken.codec import DecodeError, Reader, Writer
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, ProtocolVersion
from vmtoken.tls.suites import suite_of

MAX_PLAINTEXT = 1 << 14
"""Octets of the longest plaintext of a record (RFC 8446 section 5.1)."""

MIN_RECORD_SIZE_LIMIT = 64
"""No side may ask for shorter records (RFC 8449 section 4)."""


@dataclass(frozen=True, slots=True)
class KeyBlock:
    """All that the record layer of one session starts from; `ValueError` if it does not fit together.

    TLS 1.3: the secrets are the application traffic secrets (RFC 8446 section 7.1).
    TLS 1.2: write key || write IV of each direction (RFC 5246 section 6.3).
    """

    version: ProtocolVersion
    cipher_suite: CipherSuite
    client_secret: SecretBytes
    server_secret: SecretBytes
    client_sequence: int
    """Of the next record that the client sends: 1 after a TLS 1.2 handshake, 0 after a TLS 1.3 one."""

    server_sequence: int
    send_limit: int = MAX_PLAINTEXT
    """Longest plaintext that the server takes in a record, in octets (RFC 8449, less the content type)."""

    receive_limit: int = MAX_PLAINTEXT
    """Longest plaintext that the client takes in a record, in octets."""

    def __post_init__(self) -> None:
        suite = suite_of(self.cipher_suite)
        if suite is None or suite.version != self.version:
            raise ValueError(
                f"cipher suite {self.cipher_suite:#06x} does not belong to version {self.version:#06x}"
            )
        if {len(self.client_secret), len(self.server_secret)} != {suite.secret_length}:
            raise ValueError(f"a secret of {suite.code.name} has {suite.secret_length} octets")
        if not all(0 <= number < 1 << 64 for number in (self.client_sequence, self.server_sequence)):
            raise ValueError("a sequence number has 64 bits")
        shortest = MIN_RECORD_SIZE_LIMIT - 1  # in TLS 1.3 the content type octet counts (RFC 8449 section 4)
        if not all(shortest <= limit <= MAX_PLAINTEXT for limit in (self.send_limit, self.receive_limit)):
            raise ValueError(f"a record limit is {shortest} to {MAX_PLAINTEXT} octets")

    def encode(self) -> bytes:
        """As a card exports it: version, suite, sequence numbers, limits, both secrets with their lengths.

        The octets are secret: they are for the one reader that starts the record layer.
        """
        writer = Writer()
        writer.uint(self.version, 2)
        writer.uint(self.cipher_suite, 2)
        writer.uint(self.client_sequence, 8)
        writer.uint(self.server_sequence, 8)
        writer.uint(self.send_limit, 2)
        writer.uint(self.receive_limit, 2)
        writer.opaque(self.client_secret.reveal(), 1)
        writer.opaque(self.server_secret.reveal(), 1)
        return writer.getvalue()

    @classmethod
    def decode(cls, octets: bytes) -> KeyBlock:
        """The inverse of `encode`; raises `DecodeError`."""
        try:
            with Reader(octets) as reader:
                return cls(
                    version=ProtocolVersion(reader.uint(2)),
                    cipher_suite=CipherSuite(reader.uint(2)),
                    client_sequence=reader.uint(8),
                    server_sequence=reader.uint(8),
                    send_limit=reader.uint(2),
                    receive_limit=reader.uint(2),
                    client_secret=SecretBytes(reader.opaque(1)),
                    server_secret=SecretBytes(reader.opaque(1)),
                )
        except DecodeError:
            raise
        except ValueError as error:
            raise DecodeError(f"not a key block: {error}") from None
