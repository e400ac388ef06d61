"""What a software element keeps for its PIV application, and what a fresh one holds."""

from __future__ import annotations

import re
import secrets
import uuid
from dataclasses import dataclass
from typing import Final

import msgspec

from dom0_broker.backends.software.pin import StoredPin
from vmtoken.cards.piv_codes import MANAGEMENT_KEY_LENGTHS, Algorithm, DataObject
from vmtoken.errors import InvalidRequest
from vmtoken.iso7816.commands import PIN_LENGTH, pad_pin
from vmtoken.iso7816.tlv import encode_tlv
from vmtoken.secret import SecretBytes

TRIES: Final = 3
"""Of the PIN and of the PUK; the standard leaves it to the issuer."""

_PIN = re.compile(rb"[0-9]{6,8}\xff*")
_PUK = re.compile(rb"[!-~]{6,8}\xff*")
"""SP 800-73-4 part 1 section 2.4.3; the PUK may be other octets than digits."""

_DIGITS = 8

_NON_FEDERAL_FASC_N = bytes.fromhex("D4E739DA739CED39CE739D836858210842108421C84210C3EB")
"""Federal Agency Smart Credential Number of agency 9999, which is none: the GUID identifies the card."""

_CARD_IDENTIFIER = bytes.fromhex("A000000116 FF 02")
"""GSC-RID, manufacturer, card type; 14 octets of the card's own follow."""

_CAPABILITIES = bytes.fromhex("F10121 F20121 F300 F40100 F50110 F600 F700 FA00 FB00 FC00 FD00 FE00")
"""The rest of a Card Capability Container (part 1 appendix A, table 8): version 2.1, PIV data model."""


class StoredPiv(msgspec.Struct, frozen=True):
    """Everything that lasts of the PIV application."""

    pin: StoredPin
    puk: StoredPin
    management_key: bytes
    management_algorithm: int
    keys: dict[int, bytes] = {}
    """PKCS#8, DER, by slot."""

    objects: dict[int, bytes] = {}
    """What is inside tag 53, by tag."""

    def __repr__(self) -> str:
        return "StoredPiv()"


@dataclass(frozen=True, slots=True)
class PivSecrets:
    """What whoever owns the application has to know."""

    pin: SecretBytes
    """6 to 8 digits."""

    puk: SecretBytes
    """6 to 8 printable characters."""

    management_key: SecretBytes
    """16, 24 or 32 octets."""

    management_algorithm: Algorithm = Algorithm.AES_256

    @classmethod
    def random(cls) -> PivSecrets:
        """Of a card of its own."""
        pin, puk = (SecretBytes(_random_digits()) for _ in range(2))
        return cls(pin, puk, SecretBytes(secrets.token_bytes(32)))

    @classmethod
    def well_known(cls) -> PivSecrets:
        """Those that PIV cards leave the factory with and every tool knows: for trials alone."""
        factory = SecretBytes(bytes(range(1, 9)) * 3)
        return cls(SecretBytes(b"123456"), SecretBytes(b"12345678"), factory, Algorithm.TRIPLE_DES)


def fresh_piv(owner: PivSecrets) -> StoredPiv:
    """An application without keys, with a GUID of its own. Raises `InvalidRequest` for unfit secrets."""
    if len(owner.management_key) != MANAGEMENT_KEY_LENGTHS.get(owner.management_algorithm):
        raise InvalidRequest(
            "The management key of a PIV card has 16, 24 or 32 octets, as its algorithm demands."
        )
    return StoredPiv(
        pin=_stored(owner.pin, _PIN, "The PIN of a PIV card has 6 to 8 digits; choose another."),
        puk=_stored(owner.puk, _PUK, "The PUK of a PIV card has 6 to 8 characters; choose another."),
        management_key=owner.management_key.reveal(),
        management_algorithm=owner.management_algorithm,
        objects={
            DataObject.CARD_HOLDER_UNIQUE_IDENTIFIER: _chuid(uuid.uuid4().bytes),
            DataObject.CARD_CAPABILITY_CONTAINER: _card_capability_container(secrets.token_bytes(14)),
        },
    )


def is_pin(octets: bytes) -> bool:
    """Whether 8 octets from the wire may be a PIN."""
    return len(octets) == PIN_LENGTH and _PIN.fullmatch(octets) is not None


def is_puk(octets: bytes) -> bool:
    """Whether 8 octets from the wire may be a PUK."""
    return len(octets) == PIN_LENGTH and _PUK.fullmatch(octets) is not None


def _stored(secret: SecretBytes, pattern: re.Pattern[bytes], rule: str) -> StoredPin:
    padded = pad_pin(secret) if 0 < len(secret) <= PIN_LENGTH else b""
    if not pattern.fullmatch(padded):
        raise InvalidRequest(rule)
    return StoredPin.of(padded, TRIES)


def _chuid(guid: bytes) -> bytes:
    """Card Holder Unique Identifier (part 1 appendix A, table 9), not signed and valid to the end of 2049."""
    return (
        encode_tlv(0x30, _NON_FEDERAL_FASC_N)
        + encode_tlv(0x34, guid)
        + encode_tlv(0x35, b"20491231")
        + encode_tlv(0x3E, b"")
        + encode_tlv(0xFE, b"")
    )


def _card_capability_container(card_id: bytes) -> bytes:
    return encode_tlv(0xF0, _CARD_IDENTIFIER + card_id) + _CAPABILITIES


def _random_digits() -> bytes:
    return "".join(secrets.choice("0123456789") for _ in range(_DIGITS)).encode()
