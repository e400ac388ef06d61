"""Which applications a card holds, and what they tell without a PIN."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmtoken.cards import commands
from vmtoken.cards.codes import CLA, Features, PinReference
from vmtoken.cards.misbehaviour import NONSENSE
from vmtoken.cards.profile import Fci
from vmtoken.iso7816 import commands as iso7816
from vmtoken.iso7816.channel import CardChannel, Chaining
from vmtoken.iso7816.connection import CardConnection
from vmtoken.tls.codes import ProtocolVersion


class ApplicationKind(enum.Enum):
    """The applications that tokens are made of."""

    EAP_TLS = "EAP-TLS"
    PIV = "PIV"


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

    certificates: Mapping[str, bytes] = field(default_factory=dict)
    """DER, by the slot that they are in; only PIV tells them without a PIN."""


def applications_on(connection: CardConnection, *, t0: bool = False) -> tuple[CardApplication, ...]:
    """What is on a card, the best first. Selects one after the other, so nothing may be under way.

    The connection stays open. Raises `TokenUnavailable`.
    """
    found = (_eap_tls(connection, t0),)
    return tuple(each for each in found if each is not None)


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


def _tries_left(channel: CardChannel, reference: int, cla: int) -> int | None:
    try:
        return iso7816.retries_left(channel, reference, cla=cla)
    except NONSENSE:
        return None
