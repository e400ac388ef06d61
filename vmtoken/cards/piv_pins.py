"""The user PIN of a PIV card (NIST SP 800-73-4 part 2, section 3.2): its tries, change, unblock."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager

from vmtoken.cards import pins
from vmtoken.cards.misbehaviour import refusals
from vmtoken.cards.piv_codes import Reference
from vmtoken.cards.piv_session import USER_PIN, PivSession
from vmtoken.errors import InvalidRequest, PinBlocked
from vmtoken.iso7816 import commands as iso7816
from vmtoken.iso7816.channel import CardChannel
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWord, StatusWordError
from vmtoken.secret import SecretBytes

PIN_RULE = "The PIN of a PIV card has 6 to 8 digits, and some cards refuse simple ones; choose another."

_PIN = re.compile(rb"[!-~]{6,8}")
"""Part 1 section 2.4.3 has digits; some cards take letters as well, so the card decides."""

_REFUSED_NEW_PIN = (StatusWord.WRONG_DATA, StatusWord.CONDITIONS_NOT_SATISFIED)


def user_pin_tries_left(connection: CardConnection, *, t0: bool = False) -> int | None:
    """None while it is verified. Closes the connection. Raises `TokenUnavailable`."""
    with _session(connection, t0=t0) as card:
        return iso7816.retries_left(card.channel, Reference.APPLICATION_PIN)


def change_user_pin(
    connection: CardConnection,
    old_pin: SecretBytes,
    new_pin: SecretBytes,
    *,
    t0: bool = False,
    pin_reserve: int = 1,
) -> None:
    """Raises `PinRejected`, `PinBlocked` (also for the reserve), `InvalidRequest`, `Conflict`.

    Closes the connection.
    """
    with _session(connection, t0=t0) as card:
        _check_new_pin(new_pin)
        pins.check_tries(card.channel, USER_PIN, reserve=pin_reserve)
        iso7816.change_reference_data(card.channel, Reference.APPLICATION_PIN, old_pin, new_pin)


def unblock_user_pin(
    connection: CardConnection,
    puk: SecretBytes,
    new_pin: SecretBytes,
    *,
    t0: bool = False,
    pin_reserve: int = 1,
) -> None:
    """A new user PIN with all its tries, even if it is blocked. Closes the connection; errors as above.

    Most cards do not tell how many tries of the PUK are left before one is spent; then it is spent.
    """
    with _session(connection, t0=t0) as card:
        _check_new_pin(new_pin)
        _check_puk_tries(card.channel, pin_reserve)
        iso7816.reset_retry_counter(card.channel, Reference.APPLICATION_PIN, puk, new_pin)


def _check_puk_tries(channel: CardChannel, reserve: int) -> None:
    try:
        left = iso7816.retries_left(channel, Reference.PUK)
    except StatusWordError:
        return
    if left is not None and left <= reserve:
        raise PinBlocked(
            f"The PUK of the card has only {iso7816.tries(left)} left, too few to risk one; whoever issued "
            "the card can help."
        )


def _check_new_pin(pin: SecretBytes) -> None:
    if not _PIN.fullmatch(pin.reveal()):
        raise InvalidRequest(PIN_RULE)


@contextmanager
def _session(connection: CardConnection, *, t0: bool) -> Iterator[PivSession]:
    with (
        closing(PivSession(connection, None, t0=t0)) as card,
        refusals(dict.fromkeys(_REFUSED_NEW_PIN, PIN_RULE)),
    ):
        yield card
