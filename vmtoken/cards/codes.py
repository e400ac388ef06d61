"""Code points of the card application: draft-urien-eap-smartcard, and our profile of it."""

from __future__ import annotations

import enum

AID = bytes.fromhex("A0 00 00 00 30 00 02 FF FF FF FF 89 31 32 38 00")
"""draft-urien-eap-smartcard section 12.1."""

CLA = 0xA0
PROFILE_VERSION = 1
SHA256_LENGTH = 32
MAX_HANDLE_LENGTH = 32
"""Octets of a session handle or of a resumption handle."""


class Instruction(enum.IntEnum):
    """INS of the commands, CLA A0: first the draft's (section 9), behind the gap the profile's."""

    SET_IDENTITY = 0x16
    IDENTITIES = 0x17
    CURRENT_IDENTITY = 0x18
    STATE = 0x19
    PROFILE_DATA = 0x1A
    VERIFY_PIN = 0x20
    CHANGE_PIN = 0x24
    UNBLOCK_PIN = 0x2C
    PROCESS_EAP = 0x80
    EXPORTED_PARAMETER = 0x86
    SESSION_KEY = 0xA6
    FETCH = 0x12
    GET_RESPONSE = 0xC0

    GENERATE_KEY = 0x46
    CERTIFICATE_REQUEST = 0x4A
    TAKE_TICKET = 0x8A
    PUT_DATA = 0xDA


class IdentityCommand(enum.IntEnum):
    """P2 of INS 16 and 17 (sections 9.5 to 9.11)."""

    GET_NEXT = 0x01
    GET_PREFERRED = 0x02
    SET = 0x80
    ADD = 0x81
    DELETE = 0x82


class StateCommand(enum.IntEnum):
    """P1 of INS 19 (sections 9.17, 9.18)."""

    GET = 0x00
    RESET = 0x10


class PinReference(enum.IntEnum):
    """P2 of the PIN commands."""

    USER = 0x00
    OPERATOR = 0x01


class Export(enum.IntEnum):
    """Index of Get-Exported-Parameter: below 80 the draft's (section 9.19), the others the profile's."""

    PEER_ID = 0x01
    SERVER_ID = 0x02
    CIPHER_SUITE = 0x80
    KEY_BLOCK = 0x81
    SESSION_STATE = 0x82
    SERVER_CERTIFICATE = 0x83
    SERVER_PATH = 0x84
    FAILURE = 0x85
    SERVER = 0x86
    RESULT = 0x87


class DataObject(enum.IntEnum):
    """P2 of Put-Data: what is stored for the current identity."""

    CERTIFICATE_CHAIN = 0x01
    TRUST_ANCHORS = 0x02
    PRIVATE_KEY = 0x03
    """Software elements only."""

    SERVER_NAME = 0x04
    """Whom an EAP peer expects when its Start names nobody."""


class KeyAlgorithm(enum.IntEnum):
    """P2 of Generate-Key."""

    ECDSA_P256 = 0x01
    ECDSA_P384 = 0x02
    ED25519 = 0x03
    RSA_2048 = 0x04
    RSA_3072 = 0x05
    ML_DSA_44 = 0x06
    ML_DSA_65 = 0x07
    ML_DSA_87 = 0x08


class Features(enum.IntFlag):
    """What a card can do beyond the handshake; two octets in the FCI."""

    RESUMPTION = 0x0001
    PERSONALISATION = 0x0002
    KEY_IMPORT = 0x0004
    SOFTWARE = 0x8000
    """Not a card: nothing in it is protected by hardware."""


class Mode(enum.IntEnum):
    """What a handshake is for; it decides what may be exported."""

    EAP_PEER = 0x00
    """EAP-TLS as RFC 5216 and RFC 9190 have it: the MSK, never a key block."""

    TOKEN = 0x01
    """TLS with a plain server: the key block, never an MSK."""


class FailureCode(enum.IntEnum):
    """Why a handshake failed, as far as somebody must act differently."""

    OTHER = 0x00
    SERVER_CERTIFICATE = 0x01
    CLIENT_CERTIFICATE_UNUSABLE = 0x02
    CLIENT_CERTIFICATE_REFUSED = 0x03
    VERSION = 0x04
    NOT_READY = 0x05
