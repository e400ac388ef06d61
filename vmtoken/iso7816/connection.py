"""The lower seam: something that takes one APDU and answers it."""

from __future__ import annotations

from typing import Protocol


class CardConnection(Protocol):
    """A powered card, in this machine's memory, in a reader or in a remote grid.

    A connection is used by one thread at a time.
    """

    def transmit(self, command: bytes) -> bytes:
        """Send one command APDU; the answer is the response data followed by SW1 SW2.

        `command` is a short or extended APDU of ISO/IEC 7816-4 section 5.1. The answer
        has at least two octets. Raises `vmtoken.errors.TokenUnavailable` when the card
        does not answer; a status word, whatever it says, is an answer.
        """
        ...

    def reset(self) -> None:
        """Reset the card (warm reset): applications are deselected, PINs forgotten."""
        ...

    def close(self) -> None:
        """Give the card back; the connection is not used again. May be called twice."""
        ...
