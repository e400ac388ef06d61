"""Key material and PINs that do not print themselves and can be wiped."""

from __future__ import annotations

import hmac


class SecretBytes:
    """Octets that stay out of logs, reprs, pickles and comparisons that leak time.

    Python copies memory behind our back, so `wipe` is best effort: it clears the one
    buffer that this object owns.
    """

    __slots__ = ("_buffer",)

    def __init__(self, octets: bytes | bytearray | memoryview) -> None:
        self._buffer = bytearray(octets)

    def reveal(self) -> bytes:
        """The octets, for the one call that needs them."""
        return bytes(self._buffer)

    def wipe(self) -> None:
        """Overwrite the octets with zeros and forget them."""
        self._buffer[:] = bytes(len(self._buffer))
        self._buffer.clear()

    def __len__(self) -> int:
        return len(self._buffer)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self._buffer, other._buffer)

    __hash__ = None  # type: ignore[assignment]  # a secret is not a dictionary key

    def __repr__(self) -> str:
        return f"SecretBytes(<{len(self._buffer)} octets>)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")
