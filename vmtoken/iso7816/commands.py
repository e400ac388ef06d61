"""Commands of ISO/IEC 7816-4, one function each.

Applications that use another class octet for the same command say so with `cla`.
"""

from __future__ import annotations

from vmtoken.errors import InvalidRequest, PinBlocked, PinRejected
from vmtoken.iso7816.apdu import MAX_SHORT_LE, CommandApdu
from vmtoken.iso7816.channel import CardChannel
from vmtoken.iso7816.status import StatusWord, StatusWordError
from vmtoken.secret import SecretBytes

PIN_LENGTH = 8
"""Octets of a PIN on the wire; a shorter one is filled up with FF."""

_INS_VERIFY = 0x20
_INS_CHANGE_REFERENCE_DATA = 0x24
_INS_RESET_RETRY_COUNTER = 0x2C
_INS_SELECT = 0xA4


def select(channel: CardChannel, aid: bytes) -> bytes:
    """SELECT an application by its AID; the answer is its FCI, empty if it has none (section 11.2.2)."""
    return channel.send(CommandApdu(0x00, _INS_SELECT, 0x04, 0x00, aid, MAX_SHORT_LE))


def verify(channel: CardChannel, reference: int, pin: SecretBytes, *, cla: int = 0x00) -> None:
    """VERIFY a PIN (section 11.6.6); raise `PinRejected` with the tries that are left, or `PinBlocked`."""
    _send_pin(channel, CommandApdu(cla, _INS_VERIFY, 0x00, reference, pad_pin(pin)))


def retries_left(channel: CardChannel, reference: int, *, cla: int = 0x00) -> int | None:
    """VERIFY without data: how many tries of a PIN are left; None when it is verified already."""
    status = channel.exchange(CommandApdu(cla, _INS_VERIFY, 0x00, reference)).status
    if status == StatusWord.SUCCESS:
        return None
    if status.retries_left is None:
        raise StatusWordError(status, _INS_VERIFY)
    return status.retries_left


def change_reference_data(
    channel: CardChannel, reference: int, old: SecretBytes, new: SecretBytes, *, cla: int = 0x00
) -> None:
    """CHANGE REFERENCE DATA: replace a PIN by a new one (section 11.6.7); errors as `verify`."""
    command = CommandApdu(cla, _INS_CHANGE_REFERENCE_DATA, 0x00, reference, pad_pin(old) + pad_pin(new))
    _send_pin(channel, command)


def reset_retry_counter(
    channel: CardChannel, reference: int, first: SecretBytes, second: SecretBytes, *, cla: int = 0x00
) -> None:
    """RESET RETRY COUNTER: unblock a PIN (section 11.6.10); errors are about the unblocking code.

    ISO/IEC 7816-4 puts the code first and the new PIN second, draft-urien-eap-smartcard the other way round.
    """
    command = CommandApdu(cla, _INS_RESET_RETRY_COUNTER, 0x00, reference, pad_pin(first) + pad_pin(second))
    _send_pin(channel, command)


def pad_pin(pin: SecretBytes) -> bytes:
    """A PIN as it goes over the wire: 8 octets, filled up with FF. Raises `InvalidRequest`."""
    octets = pin.reveal()
    if not 0 < len(octets) <= PIN_LENGTH:
        raise InvalidRequest(f"The PIN of a card has 1 to {PIN_LENGTH} characters; give the right one.")
    return octets.ljust(PIN_LENGTH, b"\xff")


def tries(count: int) -> str:
    """Tries of a PIN in words."""
    return "1 try" if count == 1 else f"{count} tries"


def _send_pin(channel: CardChannel, command: CommandApdu) -> None:
    """Send a command that spends a try when the PIN in it is wrong."""
    try:
        channel.send(command)
    except StatusWordError as error:
        retries = error.status.retries_left
        if retries is None:
            raise
        if retries == 0:
            raise PinBlocked("The PIN is blocked; it has to be unblocked.") from error
        raise PinRejected(
            f"The card refused the PIN, and has {tries(retries)} left; give the right one.",
            retries_left=retries,
        ) from error
