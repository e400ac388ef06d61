"""What people are told when a PIN was refused or is not tried."""

from __future__ import annotations

from dom0_broker.store import PinRecord, PinRole
from vmtoken.errors import PinBlocked, PinRejected


def rejected(token: str, role: PinRole, record: PinRecord, tries_left: int | None = None) -> PinRejected:
    """A PIN was refused, now or before."""
    tries = record.tries_left if tries_left is None else tries_left
    where = f" in {record.source}" if record.source else ""
    left = "" if tries is None else f", which leaves {in_words(tries)}"
    return PinRejected(
        f"Token '{token}' refused the {role} PIN{where}{left}; it is not tried again. Give the right one "
        f"with {set_command(token, role)}.",
        retries_left=tries or 0,
    )


def refused_code(token: str, tries_left: int | None) -> PinRejected:
    """What was to unblock was refused, now or before."""
    left = "" if tries_left is None else f", which leaves {in_words(tries_left)}"
    return PinRejected(
        f"Token '{token}' refused this code{left}; it is not tried again. Give the right one.",
        retries_left=tries_left or 0,
    )


def too_few(token: str, role: PinRole, tries: int) -> PinBlocked:
    """The reserve is not touched."""
    remedy = (
        f"'vmtokenctl token pin unblock {token}' gives a new one"
        if role is PinRole.USER
        else "ask its issuer"
    )
    if tries == 0:
        return PinBlocked(f"The {role} PIN of token '{token}' is blocked; {remedy}.")
    return PinBlocked(
        f"The {role} PIN of token '{token}' has only {in_words(tries)} left, too few to risk one; {remedy}."
    )


def set_command(token: str, role: PinRole) -> str:
    """The command that gives a PIN."""
    return f"'vmtokenctl token pin set {token}{' --operator' if role is PinRole.OPERATOR else ''}'"


def in_words(tries: int) -> str:
    """`1 try`, `2 tries`."""
    return "1 try" if tries == 1 else f"{tries} tries"
