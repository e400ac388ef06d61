"""The rule for PINs of cards: ask for the tries that are left first, and never spend the last ones."""

from __future__ import annotations

from dataclasses import dataclass

from vmtoken.errors import PinBlocked, PinMissing
from vmtoken.iso7816 import commands as iso7816
from vmtoken.iso7816.channel import CardChannel
from vmtoken.secret import SecretBytes


@dataclass(frozen=True, slots=True)
class CardPin:
    """One PIN of an application: P2 and CLA of its VERIFY, and what people need to know of it."""

    reference: int
    name: str
    """'user PIN'"""

    remedy: str
    """What to do when it is not tried any more: 'unblock it with the PUK'."""

    cla: int = 0x00


def verify_pin(
    channel: CardChannel, pin: CardPin, secret: SecretBytes | None, *, reserve: int = 1, always: bool = False
) -> None:
    """Give a PIN unless `reserve` tries or fewer are left; `PinMissing`, `PinRejected`, `PinBlocked`.

    One that is verified already is given again only `always`.
    """
    left = iso7816.retries_left(channel, pin.reference, cla=pin.cla)
    if left is None and not always:
        return
    if left != 0 and secret is None:
        raise PinMissing(f"The card needs its {pin.name}, and none was given; the operator has to give it.")
    _check(pin, left, reserve)
    assert secret is not None, "a PIN that is blocked was refused"
    iso7816.verify(channel, pin.reference, secret, cla=pin.cla)


def check_tries(channel: CardChannel, pin: CardPin, *, reserve: int = 1) -> None:
    """Raise `PinBlocked` if `reserve` tries of a PIN are left, or fewer."""
    _check(pin, iso7816.retries_left(channel, pin.reference, cla=pin.cla), reserve)


def _check(pin: CardPin, left: int | None, reserve: int) -> None:
    if left is None:
        return
    if left == 0:
        raise PinBlocked(f"The {pin.name} of the card is blocked; {pin.remedy}.")
    if left <= reserve:
        raise PinBlocked(
            f"The {pin.name} of the card has only {iso7816.tries(left)} left, too few to risk one; "
            f"{pin.remedy}."
        )
