"""Commands of the EAP-TLS application, one function each: draft-urien-eap-smartcard, then our profile.

All raise `StatusWordError`; what they read back from the card raises `DecodeError` if it makes no sense.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmtoken.cards.codes import (
    AID,
    CLA,
    DataObject,
    Export,
    IdentityCommand,
    Instruction,
    KeyAlgorithm,
    StateCommand,
)
from vmtoken.cards.profile import Fci, ProfileData, TicketAnswer, encode_names
from vmtoken.iso7816 import commands
from vmtoken.iso7816.apdu import CommandApdu
from vmtoken.iso7816.channel import CardChannel
from vmtoken.iso7816.tlv import encode_tlv


def select(channel: CardChannel) -> Fci | None:
    """SELECT the application (section 9.4); None for a plain card of the draft, which has no FCI."""
    answer = commands.select(channel, AID)
    return Fci.decode(answer) if answer else None


def preferred_identity(channel: CardChannel) -> bytes:
    """Get-Preferred-Identity (section 9.7)."""
    return _ask(channel, Instruction.IDENTITIES, p2=IdentityCommand.GET_PREFERRED)


def next_identity(channel: CardChannel) -> bytes:
    """Get-Next-Identity (section 9.9); the list wraps round."""
    return _ask(channel, Instruction.IDENTITIES, p2=IdentityCommand.GET_NEXT)


def current_identity(channel: CardChannel) -> bytes:
    """Get-Current-Identity (section 9.8)."""
    return _ask(channel, Instruction.CURRENT_IDENTITY)


def set_identity(channel: CardChannel, label: bytes) -> None:
    """Set-Identity (section 9.11)."""
    _tell(channel, Instruction.SET_IDENTITY, label, p2=IdentityCommand.SET)


def add_identity(channel: CardChannel, label: bytes) -> None:
    """Add-Identity (section 9.5)."""
    _tell(channel, Instruction.IDENTITIES, label, p2=IdentityCommand.ADD)


def delete_identity(channel: CardChannel, label: bytes) -> None:
    """Delete-Identity (section 9.6)."""
    _tell(channel, Instruction.IDENTITIES, label, p2=IdentityCommand.DELETE)


def profile_data(channel: CardChannel) -> ProfileData:
    """Get-Profile-Data (section 9.10)."""
    return ProfileData.decode(_ask(channel, Instruction.PROFILE_DATA))


def state(channel: CardChannel) -> int:
    """Get-State (section 9.17)."""
    return int.from_bytes(_ask(channel, Instruction.STATE, p1=StateCommand.GET), "big")


def reset_state(channel: CardChannel) -> None:
    """Reset-State (section 9.18)."""
    _tell(channel, Instruction.STATE, p1=StateCommand.RESET)


def process_eap(channel: CardChannel, packet: bytes) -> bytes:
    """Process-EAP (section 9.13.1)."""
    return _ask(channel, Instruction.PROCESS_EAP, packet)


def exported_parameter(channel: CardChannel, index: Export) -> bytes:
    """Get-Exported-Parameter (section 9.19)."""
    return _ask(channel, Instruction.EXPORTED_PARAMETER, bytes((index,)))


def session_key(channel: CardChannel, length: int = 64) -> bytes:
    """Get-Session-Key (section 9.15): the MSK in 64 octets, or MSK and EMSK in 128."""
    return channel.send(CommandApdu(CLA, Instruction.SESSION_KEY, le=length))


def take_ticket(channel: CardChannel, session: bytes, message: bytes) -> TicketAnswer | None:
    """Take-Ticket (profile): turn a NewSessionTicket message into a session; None if it cannot be resumed."""
    data = encode_tlv(0x80, session) + (encode_tlv(0x81, message) if message else b"")
    answer = _ask(channel, Instruction.TAKE_TICKET, data)
    return TicketAnswer.decode(answer) if answer else None


def public_key(channel: CardChannel) -> bytes:
    """Generate-Key with P2 = 00 (profile): the SubjectPublicKeyInfo of the key that is there, DER."""
    return _ask(channel, Instruction.GENERATE_KEY)


def generate_key(channel: CardChannel, algorithm: KeyAlgorithm) -> bytes:
    """Generate-Key (profile): a fresh key pair; its SubjectPublicKeyInfo, DER."""
    return _ask(channel, Instruction.GENERATE_KEY, p2=algorithm)


def certificate_request(channel: CardChannel, subject: str, dns_names: Sequence[str]) -> bytes:
    """Certificate-Request (profile): PKCS#10, DER, of parts that the card puts together; RFC 4514 subject."""
    names = encode_tlv(0x81, encode_names(dns_names)) if dns_names else b""
    return _ask(channel, Instruction.CERTIFICATE_REQUEST, encode_tlv(0x80, subject.encode()) + names)


def put_data(channel: CardChannel, reference: DataObject, data: bytes) -> None:
    """Put-Data (profile)."""
    _tell(channel, Instruction.PUT_DATA, data, p2=reference)


def _ask(channel: CardChannel, ins: Instruction, data: bytes = b"", p1: int = 0x00, p2: int = 0x00) -> bytes:
    return channel.send(CommandApdu(CLA, ins, p1, p2, data, channel.limits.response_data))


def _tell(channel: CardChannel, ins: Instruction, data: bytes = b"", p1: int = 0x00, p2: int = 0x00) -> None:
    channel.send(CommandApdu(CLA, ins, p1, p2, data))
