"""Records of the session that came together with the end of the handshake.

A server of TLS 1.3 may send tickets, and even data, before it has heard our Finished (RFC 8446 section
4.4.4), and any server may send data right behind its own. What the agent handed to the token
in one piece can so end in records that are not the token's: those that the session's key opens.
"""

from __future__ import annotations

from vmtoken.tls.errors import PeerError
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.record import RecordReader, record_protection
from vmtoken.tls.suites import suite_of


def early_records(key_block: KeyBlock, last_records: bytes) -> bytes:
    """The end of `last_records`, whole records, that the key block is for; mostly nothing."""
    suite = suite_of(key_block.cipher_suite)
    assert suite is not None  # KeyBlock checked it
    secret, limit = key_block.server_secret.reveal(), key_block.receive_limit
    protection = record_protection(suite, secret, key_block.server_sequence, limit)
    start = 0
    for record in RecordReader().records(last_records):
        try:
            protection.unprotect(record)
        except PeerError:
            start += len(record)
        else:
            return last_records[start:]
    return b""
