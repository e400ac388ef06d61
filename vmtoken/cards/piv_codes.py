"""Code points of the PIV card application: NIST SP 800-73-4 part 1 and SP 800-78-4."""

from __future__ import annotations

import enum

from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.errors import InvalidRequest

AID = bytes.fromhex("A0 00 00 03 08 00 00 10 00 01 00")
"""Part 1 section 2.2, with the two octets of the version."""

AID_WITHOUT_VERSION = AID[:-2]
"""What selects any version of the application (part 2 section 3.1.1)."""

SOFTWARE_LABEL = "vmtoken software element"
"""Application label of a card whose keys no hardware protects: ours."""


class Instruction(enum.IntEnum):
    """INS of the card commands, CLA 00 (part 2 section 3)."""

    VERIFY = 0x20
    CHANGE_REFERENCE_DATA = 0x24
    RESET_RETRY_COUNTER = 0x2C
    GENERATE_ASYMMETRIC_KEY_PAIR = 0x47
    GENERAL_AUTHENTICATE = 0x87
    GET_DATA = 0xCB
    PUT_DATA = 0xDB


class Reference(enum.IntEnum):
    """P2 of commands on PINs and of the management key (part 1 table 4)."""

    APPLICATION_PIN = 0x80
    PUK = 0x81
    MANAGEMENT_KEY = 0x9B


class PinPolicy(enum.Enum):
    """When a key needs the PIN (part 1 table 4)."""

    NEVER = "never"
    ONCE = "once"
    ALWAYS = "directly before each signature"


class Slot(enum.IntEnum):
    """Asymmetric keys, by their references (part 1 table 4)."""

    AUTHENTICATION = 0x9A
    SIGNATURE = 0x9C
    KEY_MANAGEMENT = 0x9D
    CARD_AUTHENTICATION = 0x9E
    RETIRED_1 = 0x82
    RETIRED_2 = 0x83
    RETIRED_3 = 0x84
    RETIRED_4 = 0x85
    RETIRED_5 = 0x86
    RETIRED_6 = 0x87
    RETIRED_7 = 0x88
    RETIRED_8 = 0x89
    RETIRED_9 = 0x8A
    RETIRED_10 = 0x8B
    RETIRED_11 = 0x8C
    RETIRED_12 = 0x8D
    RETIRED_13 = 0x8E
    RETIRED_14 = 0x8F
    RETIRED_15 = 0x90
    RETIRED_16 = 0x91
    RETIRED_17 = 0x92
    RETIRED_18 = 0x93
    RETIRED_19 = 0x94
    RETIRED_20 = 0x95

    @classmethod
    def of(cls, text: str) -> Slot:
        """The slot that people call '9a'; raise `InvalidRequest` for none."""
        try:
            return cls(int(text, 16))
        except ValueError:
            raise InvalidRequest(
                f"A PIV card has no slot {text!r}; use 9a, 9c, 9d, 9e or one of 82 to 95."
            ) from None

    @property
    def certificate_tag(self) -> int:
        """Tag of the data object with the key's certificate (part 1 table 3)."""
        return _CERTIFICATE_TAGS.get(self, 0x5FC10D + self - Slot.RETIRED_1)

    @property
    def pin_policy(self) -> PinPolicy:
        """What the standard asks for; a card may ask for more."""
        return _PIN_POLICIES.get(self, PinPolicy.ONCE)

    def __str__(self) -> str:
        return f"{self:02X}"


_CERTIFICATE_TAGS = {
    Slot.AUTHENTICATION: 0x5FC105,
    Slot.SIGNATURE: 0x5FC10A,
    Slot.KEY_MANAGEMENT: 0x5FC10B,
    Slot.CARD_AUTHENTICATION: 0x5FC101,
}

_PIN_POLICIES = {
    Slot.SIGNATURE: PinPolicy.ALWAYS,
    Slot.CARD_AUTHENTICATION: PinPolicy.NEVER,
}


class DataObject(enum.IntEnum):
    """Tags of the data objects that are used here besides certificates (part 1 table 3)."""

    CARD_CAPABILITY_CONTAINER = 0x5FC107
    CARD_HOLDER_UNIQUE_IDENTIFIER = 0x5FC102
    PRINTED_INFORMATION = 0x5FC109
    CARD_HOLDER_FINGERPRINTS = 0x5FC103
    CARD_HOLDER_FACIAL_IMAGE = 0x5FC108
    CARD_HOLDER_IRIS_IMAGES = 0x5FC121
    PAIRING_CODE = 0x5FC123
    DISCOVERY_OBJECT = 0x7E


class Algorithm(enum.IntEnum):
    """P1 of GENERAL AUTHENTICATE (SP 800-78-4 table 6-2; RSA-3072 of SP 800-78-5)."""

    TRIPLE_DES = 0x03
    RSA_3072 = 0x05
    RSA_2048 = 0x07
    AES_128 = 0x08
    AES_192 = 0x0A
    AES_256 = 0x0C
    ECC_P256 = 0x11
    ECC_P384 = 0x14


KEY_ALGORITHMS = {
    KeyAlgorithm.ECDSA_P256: Algorithm.ECC_P256,
    KeyAlgorithm.ECDSA_P384: Algorithm.ECC_P384,
    KeyAlgorithm.RSA_2048: Algorithm.RSA_2048,
    KeyAlgorithm.RSA_3072: Algorithm.RSA_3072,
}
"""What key pairs can be made of."""

MANAGEMENT_KEY_LENGTHS = {
    Algorithm.TRIPLE_DES: 24,
    Algorithm.AES_128: 16,
    Algorithm.AES_192: 24,
    Algorithm.AES_256: 32,
}
"""Octets."""


class DynamicAuthentication(enum.IntEnum):
    """Tags inside the dynamic authentication template 7C (part 2 table 7)."""

    WITNESS = 0x80
    CHALLENGE = 0x81
    RESPONSE = 0x82
    EXPONENTIATION = 0x85
