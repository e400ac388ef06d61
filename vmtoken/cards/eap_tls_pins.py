"""The user PIN of an EAP-TLS card (draft-urien-eap-smartcard section 9.3): its tries, change, unblock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from vmtoken.cards.codes import CLA, PinReference
from vmtoken.cards.misbehaviour import refusals
from vmtoken.cards.session import CardSession
from vmtoken.iso7816 import commands as iso7816
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWord, StatusWordError
from vmtoken.secret import SecretBytes

PIN_RULE = "A PIN has 4 to 8 printable characters; choose another."


def tries_left(connection: CardConnection, *, t0: bool = False) -> tuple[int | None, int | None]:
    """Of the user PIN and of the operator PIN; None while one is verified, or for a card that has none.

    Closes the connection. Raises `TokenUnavailable`.
    """
    with _session(connection, t0=t0) as card:
        user = iso7816.retries_left(card.channel, PinReference.USER, cla=CLA)
        try:
            return user, iso7816.retries_left(card.channel, PinReference.OPERATOR, cla=CLA)
        except StatusWordError:
            return user, None  # a plain card of the draft may have no operator


def change_user_pin(
    connection: CardConnection,
    old_pin: SecretBytes,
    new_pin: SecretBytes,
    *,
    t0: bool = False,
    pin_reserve: int = 1,
) -> None:
    """Closes the connection. Raises `PinRejected`, `PinBlocked` (also for the reserve), `Conflict`."""
    with _session(connection, t0=t0) as card:
        card.check_tries(PinReference.USER, reserve=pin_reserve)
        iso7816.change_reference_data(card.channel, PinReference.USER, old_pin, new_pin, cla=CLA)


def unblock_user_pin(
    connection: CardConnection,
    operator_pin: SecretBytes,
    new_pin: SecretBytes,
    *,
    t0: bool = False,
    pin_reserve: int = 1,
) -> None:
    """A new user PIN with all its tries, even if it is blocked. Closes the connection; errors as above."""
    with _session(connection, t0=t0) as card:
        card.check_tries(PinReference.OPERATOR, reserve=pin_reserve)
        iso7816.reset_retry_counter(card.channel, PinReference.USER, new_pin, operator_pin, cla=CLA)


@contextmanager
def _session(connection: CardConnection, *, t0: bool) -> Iterator[CardSession]:
    with (
        closing(CardSession.open(connection, t0=t0)) as card,
        refusals({StatusWord.WRONG_DATA: PIN_RULE}),
    ):
        yield card
