"""What a card says or does wrong, where nobody expected it, and what that is for those above."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from vmtoken.codec import DecodeError
from vmtoken.errors import Conflict, TokenUnavailable, VmTokenError
from vmtoken.iso7816.channel import CardMisbehaved
from vmtoken.iso7816.status import StatusWord, StatusWordError

NONSENSE = (StatusWordError, CardMisbehaved, DecodeError)


@contextmanager
def card_errors() -> Iterator[None]:
    """Turns `NONSENSE` into `TokenUnavailable`."""
    try:
        yield
    except NONSENSE as error:
        raise _unavailable(error) from error


@contextmanager
def closed_on_error(close: Callable[[], None]) -> Iterator[None]:
    """`card_errors`; a card that is gone, makes no sense or refuses is given back."""
    try:
        with card_errors():
            yield
    except VmTokenError:
        close()
        raise


@contextmanager
def refusals(meanings: Mapping[StatusWord, str]) -> Iterator[None]:
    """`card_errors`, but status words that mean something to the operator become `Conflict`."""
    with card_errors():
        try:
            yield
        except StatusWordError as error:
            meaning = meanings.get(error.status)
            if meaning is None:
                raise
            raise Conflict(meaning) from error


def _unavailable(error: Exception) -> TokenUnavailable:
    if not isinstance(error, StatusWordError):
        return TokenUnavailable(f"The card's answer makes no sense: {error}.")
    return TokenUnavailable(
        f"The card is out of step: {error}, where it must not; try again, it may have been reset."
    )
