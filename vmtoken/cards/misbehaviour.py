"""What a card says or does wrong, where nobody expected it, and what that is for those above."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vmtoken.codec import DecodeError
from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.channel import CardMisbehaved
from vmtoken.iso7816.status import StatusWordError

NONSENSE = (StatusWordError, CardMisbehaved, DecodeError)


@contextmanager
def card_errors() -> Iterator[None]:
    """Turns `NONSENSE` into `TokenUnavailable`."""
    try:
        yield
    except NONSENSE as error:
        raise unavailable(error) from error


def unavailable(error: Exception) -> TokenUnavailable:
    """What `NONSENSE` is for those above."""
    if not isinstance(error, StatusWordError):
        return TokenUnavailable(f"The card's answer makes no sense: {error}.")
    return TokenUnavailable(
        f"The card is out of step: {error}, where it must not; try again, it may have been reset."
    )
