"""What of a token's key derivations is a secret that it must keep, and what the keys of its sessions are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.support.tapped_broker import Derivation

SHORTEST: Final = 16
"""Octets: what is shorter (IVs, verify_data) may be found by chance."""

_PUBLIC: Final = {bytes(32), bytes(48)}
"""What the key schedule starts from without a PSK."""

_LABELS: Final = (
    b"tls13 ",
    b"extended master secret",
    b"key expansion",
    b"client finished",
    b"server finished",
)

_KEY: Final = 32
"""Octets of a key of AES-256-GCM, which the test servers take in TLS 1.2."""


def sorted_out(tapped: Sequence[Derivation]) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """All secrets that must stay, and the keys that make up key blocks.

    What an agent may derive itself from a key block is neither.
    """
    allowed, key_blocks, finished_keys, secrets = set[bytes](), set[bytes](), set[bytes](), set[bytes]()
    for each in tapped:
        if b"tls13 c ap traffic" in each.message or b"tls13 s ap traffic" in each.message:
            key_blocks.add(each.output)
        elif b"key expansion" in each.message or each.key in key_blocks or each.key in allowed:
            allowed.add(each.output)
        elif b"tls13 finished" in each.message:
            finished_keys.add(each.output)
    key_blocks |= _tls12_keys(tapped)
    for each in tapped:
        secrets |= {each.key, each.output} if each.key not in finished_keys else {each.key}
        secrets |= _inputs(each, finished_keys)
    secrets -= allowed | key_blocks | _PUBLIC
    return frozenset(secret for secret in secrets if len(secret) >= SHORTEST), frozenset(key_blocks)


def _inputs(each: Derivation, finished_keys: set[bytes]) -> set[bytes]:
    """Key exchange results and PSKs are the messages of HKDF-Extract; other messages are public."""
    is_labelled = any(label in each.message for label in _LABELS)
    return set() if is_labelled or each.key in finished_keys else {each.message}


def _tls12_keys(tapped: Sequence[Derivation]) -> set[bytes]:
    """The first octets of client and server keys: the key block of TLS 1.2 begins with the client's key."""
    blocks: dict[bytes, bytes] = {}
    for each in tapped:
        if b"key expansion" in each.message and not each.message.startswith(b"key expansion"):
            seed = each.message[each.message.index(b"key expansion") :]
            blocks[each.key + seed] = blocks.get(each.key + seed, b"") + each.output
    return {key for block in blocks.values() for key in (block[:SHORTEST], block[_KEY : _KEY + SHORTEST])}
