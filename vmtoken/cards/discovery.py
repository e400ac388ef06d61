"""Which applications a card holds, and what they tell without a PIN."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vmtoken.cards import commands, piv_commands, piv_objects
from vmtoken.cards.codes import CLA, Features, PinReference
from vmtoken.cards.misbehaviour import NONSENSE
from vmtoken.cards.piv_codes import DataObject, Reference, Slot
from vmtoken.cards.piv_key import SlotCertificate
from vmtoken.cards.profile import Fci
from vmtoken.iso7816 import commands as iso7816
from vmtoken.iso7816.channel import CardChannel, Chaining
from vmtoken.iso7816.connection import CardConnection
from vmtoken.tls.codes import ProtocolVersion

_SLOTS = (Slot.AUTHENTICATION, Slot.SIGNATURE, Slot.KEY_MANAGEMENT, Slot.CARD_AUTHENTICATION)
"""Whose certificates are read; the retired ones would take seconds and are empty on nearly every card."""


class ApplicationKind(enum.Enum):
    """The applications that tokens are made of."""

    EAP_TLS = "EAP-TLS"
    PIV = "PIV"


@dataclass(frozen=True, slots=True)
class CardKey:
    """A key that a card tells of without a PIN."""

    certificate: bytes
    """DER; empty for a key without one."""

    capabilities: tuple[str, ...]
    """Signature schemes, best first."""


@dataclass(frozen=True, slots=True)
class CardApplication:
    """An application on a card."""

    kind: ApplicationKind
    serial: str
    """Hexadecimal; empty for a card that has none, and cannot be told from its like."""

    name: str
    """For people: 'EAP-TLS card, profile 1'."""

    capabilities: tuple[str, ...] = ()
    """For people: 'TLS 1.3', 'personalisation'."""

    tries_left: int | None = None
    """Of the user PIN; None when the card does not tell."""

    keys: Mapping[str, CardKey] = field(default_factory=dict)
    """By slot, in small letters; only PIV tells them without a PIN."""


def applications_on(connection: CardConnection, *, t0: bool = False) -> tuple[CardApplication, ...]:
    """What is on a card, the best first. Selects one after the other, so nothing may be under way.

    The connection stays open. Raises `TokenUnavailable`.
    """
    found = (_eap_tls(connection, t0), _piv(connection, t0, _SLOTS))
    return tuple(each for each in found if each is not None)


def application_on(
    connection: CardConnection, kind: ApplicationKind, *, t0: bool = False, slots: Sequence[Slot] = ()
) -> CardApplication | None:
    """One application, selected; of a PIV card with the keys of these slots. As `applications_on` else."""
    return _eap_tls(connection, t0) if kind is ApplicationKind.EAP_TLS else _piv(connection, t0, slots)


def _eap_tls(connection: CardConnection, t0: bool) -> CardApplication | None:
    channel = CardChannel(connection, chaining=Chaining.P1, le_with_data=not t0)
    try:
        fci = commands.select(channel)
    except NONSENSE:
        return None
    kind, tries = ApplicationKind.EAP_TLS, _tries_left(channel, PinReference.USER, CLA)
    if fci is None:
        return CardApplication(kind, "", "EAP-TLS card without our profile", tries_left=tries)
    name = f"EAP-TLS card, profile {fci.version}"
    return CardApplication(kind, fci.serial.hex(), name, _capabilities(fci), tries)


def _capabilities(fci: Fci) -> tuple[str, ...]:
    versions = [_spelled(version) for version in sorted(fci.versions, reverse=True)]
    features = [
        each.name.lower().replace("_", " ") for each in Features if each in fci.features and each.name
    ]
    return (*versions, *features, *(["extended APDUs"] if fci.limits.extended else []))


def _spelled(version: ProtocolVersion) -> str:
    return version.name.replace("_", " ", 1).replace("_", ".")


def _piv(connection: CardConnection, t0: bool, slots: Sequence[Slot]) -> CardApplication | None:
    channel = CardChannel(connection, le_with_data=not t0)
    try:
        template = piv_commands.select(channel)
        chuid = piv_commands.data(channel, DataObject.CARD_HOLDER_UNIQUE_IDENTIFIER)
        serial = piv_objects.guid(chuid) if chuid else ""
    except NONSENSE:
        return None
    keys = {str(slot).lower(): key for slot in slots if (key := _piv_key(channel, slot)) is not None}
    tries = _tries_left(channel, Reference.APPLICATION_PIN, 0x00)
    software = ("software",) if template.is_software else ()
    return CardApplication(ApplicationKind.PIV, serial, "PIV", software, tries, keys)


def _piv_key(channel: CardChannel, slot: Slot) -> CardKey | None:
    """None for an empty slot, and for one whose certificate is of no use."""
    try:
        octets = piv_commands.data(channel, slot.certificate_tag)
        untrusted = piv_objects.decode_certificate(octets) if octets else b""
        found = SlotCertificate.of(slot, untrusted) if untrusted else None
    except NONSENSE:
        return None
    if found is None or found.key is None:
        return None
    schemes = tuple(scheme.name for scheme in found.key.schemes)
    return CardKey(b"" if found.is_placeholder else found.octets, schemes)


def _tries_left(channel: CardChannel, reference: int, cla: int) -> int | None:
    try:
        return iso7816.retries_left(channel, reference, cla=cla)
    except NONSENSE:
        return None
