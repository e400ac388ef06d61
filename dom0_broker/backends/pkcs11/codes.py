"""Numbers of PKCS#11 v3.0 that both sides of a module's process know, spelled as in the standard."""

from __future__ import annotations

import enum


class SlotFlag(enum.IntFlag):
    """CK_SLOT_INFO.flags."""

    CKF_TOKEN_PRESENT = 0x01
    CKF_REMOVABLE_DEVICE = 0x02
    CKF_HW_SLOT = 0x04


class TokenFlag(enum.IntFlag):
    """CK_TOKEN_INFO.flags, as far as they matter here."""

    CKF_WRITE_PROTECTED = 0x00000002
    CKF_LOGIN_REQUIRED = 0x00000004
    CKF_USER_PIN_INITIALIZED = 0x00000008
    CKF_PROTECTED_AUTHENTICATION_PATH = 0x00000100
    CKF_TOKEN_INITIALIZED = 0x00000400
    CKF_USER_PIN_COUNT_LOW = 0x00010000
    CKF_USER_PIN_FINAL_TRY = 0x00020000
    CKF_USER_PIN_LOCKED = 0x00040000
    CKF_USER_PIN_TO_BE_CHANGED = 0x00080000
    CKF_SO_PIN_COUNT_LOW = 0x00100000
    CKF_SO_PIN_FINAL_TRY = 0x00200000
    CKF_SO_PIN_LOCKED = 0x00400000


class KeyType(enum.IntEnum):
    """CKK_: kinds of key that TLS has schemes for."""

    CKK_RSA = 0x00
    CKK_EC = 0x03
    CKK_EC_EDWARDS = 0x40


class Mechanism(enum.IntEnum):
    """CKM_: what may serve to sign in a handshake."""

    CKM_RSA_PKCS = 0x0001
    CKM_RSA_X_509 = 0x0003
    CKM_RSA_PKCS_PSS = 0x000D
    CKM_SHA256_RSA_PKCS = 0x0040
    CKM_SHA384_RSA_PKCS = 0x0041
    CKM_SHA512_RSA_PKCS = 0x0042
    CKM_SHA256_RSA_PKCS_PSS = 0x0043
    CKM_SHA384_RSA_PKCS_PSS = 0x0044
    CKM_SHA512_RSA_PKCS_PSS = 0x0045
    CKM_ECDSA = 0x1041
    CKM_ECDSA_SHA256 = 0x1044
    CKM_ECDSA_SHA384 = 0x1045
    CKM_EDDSA = 0x1057


class Digest(enum.IntEnum):
    """CKM_: hash functions in CK_RSA_PKCS_PSS_PARAMS."""

    CKM_SHA256 = 0x0250
    CKM_SHA384 = 0x0260
    CKM_SHA512 = 0x0270


class Mgf(enum.IntEnum):
    """CKG_: mask generation functions in CK_RSA_PKCS_PSS_PARAMS."""

    CKG_MGF1_SHA256 = 0x02
    CKG_MGF1_SHA384 = 0x03
    CKG_MGF1_SHA512 = 0x04
