"""PINs of the software element: what is kept of them, and their retry counters."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable

import msgspec

from vmtoken.iso7816.commands import PIN_LENGTH

USER_TRIES = 3
OPERATOR_TRIES = 10
"""As the card of 2005 has them (OpenEapSmartcard)."""

_SALT_LENGTH = 16
_SCRYPT_COST = 1 << 12
"""About 10 ms: the sealing key protects a PIN, this only slows down who has that key as well."""

_PIN = re.compile(rb"[!-~]{4,8}\xff*")
"""Four to eight printable octets; a card of the draft has digits."""


class StoredPin(msgspec.Struct, frozen=True):
    """A PIN that can be compared with, but not read."""

    salt: bytes
    digest: bytes
    tries_left: int
    tries: int
    """How many there are when it is right."""

    @classmethod
    def of(cls, pin: bytes, tries: int) -> StoredPin:
        """A fresh PIN of 8 octets."""
        salt = secrets.token_bytes(_SALT_LENGTH)
        return cls(salt, _digest(pin, salt), tries, tries)

    @property
    def is_blocked(self) -> bool:
        """Whether no try is left."""
        return self.tries_left == 0

    def after_a_try(self) -> StoredPin:
        """With one try less, which is kept before the PIN is looked at."""
        return msgspec.structs.replace(self, tries_left=self.tries_left - 1)

    def restored(self) -> StoredPin:
        """With all tries."""
        return msgspec.structs.replace(self, tries_left=self.tries)

    def matches(self, candidate: bytes) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(_digest(candidate, self.salt), self.digest)


def try_pin(pin: StoredPin, candidate: bytes, keep: Callable[[StoredPin], None]) -> bool:
    """Compare; a try is taken, and kept, before: whoever cuts the power in between has spent it."""
    spent = pin.after_a_try()
    keep(spent)
    if not spent.matches(candidate):
        return False
    keep(spent.restored())
    return True


def is_acceptable(pin: bytes) -> bool:
    """Whether 8 octets from the wire may become a PIN."""
    return len(pin) == PIN_LENGTH and _PIN.fullmatch(pin) is not None


def _digest(pin: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(pin, salt=salt, n=_SCRYPT_COST, r=8, p=1, dklen=32)
