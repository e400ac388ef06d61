"""Secrets at rest: AES-256-GCM under a key made of the host's sealing key and a fresh salt.

The purpose is authenticated, so that one token's PIN does not open in the place of another's, and
one element's file does not pass for another's.
"""

from __future__ import annotations

import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vmtoken.errors import Conflict
from vmtoken.secret import SecretBytes

_SALT_LENGTH: Final = 32
_NONCE: Final = bytes(12)
"""Constant: every salt makes another key."""


class SealBroken(Conflict):
    """What should be sealed was not sealed here, or for another purpose, or is damaged."""


class Safe:
    """Seals secrets for this host. `owner` tells safes apart: one does not open what another sealed."""

    def __init__(self, sealing_key: SecretBytes, owner: str = "vmtoken broker") -> None:
        self._sealing_key = sealing_key
        self._owner = owner.encode()

    def seal(self, secret: SecretBytes, purpose: str) -> bytes:
        """Octets that are of no use without the host's sealing key."""
        salt = os.urandom(_SALT_LENGTH)
        return salt + self._cipher(salt).encrypt(_NONCE, secret.reveal(), purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> SecretBytes:
        """The secret again. Raises `SealBroken`."""
        salt = sealed[:_SALT_LENGTH]
        try:
            return SecretBytes(self._cipher(salt).decrypt(_NONCE, sealed[_SALT_LENGTH:], purpose.encode()))
        except (InvalidTag, ValueError) as error:
            raise SealBroken(
                f"The secret for {purpose} was not sealed on this host, or is damaged."
            ) from error

    def digest(self, secret: SecretBytes, purpose: str) -> bytes:
        """32 octets that tell equal secrets, to nobody without the host's sealing key (HMAC-SHA-256)."""
        key = HKDF(SHA256(), 32, None, self._owner + b" digest").derive(self._sealing_key.reveal())
        return hmac.digest(key, purpose.encode() + bytes(1) + secret.reveal(), "sha256")

    def _cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(HKDF(SHA256(), 32, salt, self._owner).derive(self._sealing_key.reveal()))
