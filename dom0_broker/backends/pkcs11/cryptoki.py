"""The only place that knows the PKCS#11 binding, python-pkcs11; loaded in the processes of modules alone.

What the binding calls by names of its own gets those of the standard here, and what modules do differently
from one another is evened out.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any, Final

import pkcs11
from pkcs11.constants import DEFAULT, Attribute, MechanismFlag, ObjectClass

from dom0_broker.backends.pkcs11.codes import KeyType, TokenFlag
from vmtoken.errors import TokenNotReady

_LOOKS: Final = 3
"""Times that slots are asked for again before an error counts as the module's."""

_MAX_OBJECTS: Final = 256
"""Objects of one kind that are looked at in one token."""

CkrError = pkcs11.PKCS11Error
"""Any code but CKR_OK, by its class."""

PinLocked = pkcs11.PinLocked
PinExpired = pkcs11.PinExpired
UserPinNotInitialized = pkcs11.UserPinNotInitialized
FunctionCanceled = pkcs11.FunctionCancelled

WRONG_PIN: Final = (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange)
UNFIT_NEW_PIN: Final = (pkcs11.PinLenRange, pkcs11.PinInvalid, pkcs11.PinTooWeak)

TOKEN_LOST: Final = (
    pkcs11.DeviceError,
    pkcs11.DeviceRemoved,
    pkcs11.TokenNotPresent,
    pkcs11.TokenNotRecognised,
    pkcs11.SlotIDInvalid,
    pkcs11.SessionHandleInvalid,
    pkcs11.SessionClosed,
    pkcs11.SessionCount,
    pkcs11.UserNotLoggedIn,
    pkcs11.KeyHandleInvalid,
    pkcs11.ObjectHandleInvalid,
    pkcs11.OperationActive,
)
"""The token or our sessions with it are gone: it is opened anew, and the module too if that does not help."""

REFUSED: Final = (
    pkcs11.MechanismInvalid,
    pkcs11.MechanismParamInvalid,
    pkcs11.KeyTypeInconsistent,
    pkcs11.KeySizeRange,
    pkcs11.KeyUnextractable,
    pkcs11.DataInvalid,
    pkcs11.DataLenRange,
    pkcs11.DomainParamsInvalid,
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.AttributeReadOnly,
    pkcs11.TemplateIncomplete,
    pkcs11.TemplateInconsistent,
    pkcs11.FunctionNotSupported,
    pkcs11.FunctionRejected,
    pkcs11.TokenWriteProtected,
    pkcs11.SessionReadOnly,
    pkcs11.DeviceMemory,
    pkcs11.ArgumentsBad,
)
"""The module is well, and does not do what it was asked. Any other code means that it is loaded anew."""

_TEMPLATE_REFUSED: Final = (
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.TemplateIncomplete,
    pkcs11.TemplateInconsistent,
    pkcs11.FunctionFailed,
    pkcs11.GeneralError,
)
"""What modules say to a template that is not to their taste; tpm2-pkcs11 says CKR_GENERAL_ERROR."""

_UNREADABLE: Final = (
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeSensitive,
    pkcs11.AttributeValueInvalid,
    pkcs11.FunctionFailed,
    struct.error,
    ValueError,
    IndexError,
)
"""What the binding raises for an attribute that a module does not have, or has in a form of its own."""

_LEFT_OPEN: Final = dict.fromkeys(
    (Attribute.ENCRYPT, Attribute.DECRYPT, Attribute.WRAP, Attribute.UNWRAP, Attribute.DERIVE), DEFAULT
)
"""Attributes that a template then does not name."""

_KEY_TYPES: Final = {
    KeyType.CKK_RSA: pkcs11.KeyType.RSA,
    KeyType.CKK_EC: pkcs11.KeyType.EC,
    KeyType.CKK_EC_EDWARDS: pkcs11.KeyType.EC_EDWARDS,
}

_ON_CURVES: Final = {"ec_params": Attribute.EC_PARAMS, "ec_point": Attribute.EC_POINT}
_PUBLIC: Final[dict[int, dict[str, Attribute]]] = {
    KeyType.CKK_RSA: {"modulus": Attribute.MODULUS, "public_exponent": Attribute.PUBLIC_EXPONENT},
    KeyType.CKK_EC: _ON_CURVES,
    KeyType.CKK_EC_EDWARDS: _ON_CURVES,
}
"""What makes a public key of each kind."""


# Modules, tokens, sessions ------------------------------------------------------------------------------


def load(path: str) -> Any:
    """C_Initialize."""
    return pkcs11.lib(path)


def tokens(library: Any) -> Iterator[Any]:
    """Those present, in the order of their slots; one that goes just now is left out."""
    for slot in _slots_with_tokens(library):
        with contextlib.suppress(
            pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised, pkcs11.DeviceRemoved, pkcs11.DeviceError
        ):
            yield slot.get_token()


def _slots_with_tokens(library: Any) -> list[Any]:
    """Each once. The binding asks how many there are, and then which they are: tokens come and go in between.

    It then fails (CKR_BUFFER_TOO_SMALL, which has no class there), or shows a slot that is none, or twice.
    """
    for _ in range(_LOOKS):
        with contextlib.suppress(CkrError):
            return _each_once(library.get_slots(token_present=True))
    return _each_once(library.get_slots(token_present=True))


def _each_once(slots: list[Any]) -> list[Any]:
    return list({slot.slot_id: slot for slot in slots}.values())


def flags(token: Any) -> TokenFlag:
    """CK_TOKEN_INFO.flags as they were when the token was looked at."""
    return TokenFlag(int(token.flags))


def flags_now(token: Any) -> TokenFlag:
    """CK_TOKEN_INFO.flags, asked for; those from before when the token does not answer."""
    try:
        return flags(token.slot.get_token())
    except pkcs11.PKCS11Error:
        return flags(token)


def serial(token: Any) -> str:
    """CK_TOKEN_INFO.serialNumber without its padding."""
    number: bytes = token.serial
    return number.rstrip(b" \0").decode("utf-8", "replace")


def describe(token: Any) -> dict[str, Any]:
    """CK_TOKEN_INFO, with its slot and the mechanisms."""
    slot = token.slot
    return {
        "slot_id": slot.slot_id,
        "slot_description": _padded(slot.slot_description),
        "slot_flags": int(slot.flags),
        "token": _padded(token.label),
        "manufacturer": _padded(token.manufacturer_id),
        "model": _padded(token.model),
        "serial": serial(token),
        "flags": int(token.flags),
        "mechanisms": sorted(int(mechanism) for mechanism in slot.get_mechanisms()),
    }


def log_in(token: Any, pin: str | None) -> Any:
    """A session with C_Login as user; without a PIN at the reader's own keys."""
    return token.open(user_pin=pkcs11.types.PROTECTED_AUTH if pin is None else pin)


def is_open(session: Any) -> bool:
    """Whether a session is still one: a search tells, since the binding has no C_GetSessionInfo."""
    try:
        _objects(session, ObjectClass.HW_FEATURE)
    except TOKEN_LOST:
        return False
    return True


def close(session: Any) -> None:
    """C_Logout where the session logged in, C_CloseSession; closing what is gone is no error."""
    with contextlib.suppress(pkcs11.PKCS11Error):
        session.close()


def code(error: pkcs11.PKCS11Error) -> str:
    """The name of the code, or what the loader of the library said."""
    name = type(error).__name__
    return str(error) if name == "PKCS11Error" and str(error) else name


# Objects --------------------------------------------------------------------------------------------------


def private_keys(session: Any, key_id: bytes | None, label: str | None) -> list[Any]:
    """CKO_PRIVATE_KEY with these attributes; None: any."""
    return _objects(session, ObjectClass.PRIVATE_KEY, key_id, label)


def private_keys_by_certificate(session: Any, key_id: bytes | None, label: str | None) -> list[Any]:
    """The private keys with the CKA_ID of the certificates that have these attributes."""
    found = _objects(session, ObjectClass.CERTIFICATE, key_id, label)
    ids = {_attribute(certificate, Attribute.ID, b"") for certificate in found}
    return [key for each in sorted(ids) if each for key in private_keys(session, each, None)]


def visible_keys(session: Any) -> list[dict[str, Any]]:
    """Public keys, and private ones of which no public key shows."""
    public = [describe_key(session, key) for key in _objects(session, ObjectClass.PUBLIC_KEY)]
    private = [describe_key(session, key) for key in _objects(session, ObjectClass.PRIVATE_KEY)]
    shown = {key["id"] for key in public}
    return [*public, *(key for key in private if key["id"] not in shown)]


def describe_key(session: Any, key: Any) -> dict[str, Any]:
    """What is known of a key, with its public part as far as there are objects that tell."""
    key_id = _attribute(key, Attribute.ID, b"")
    key_type = int(_attribute(key, Attribute.KEY_TYPE, -1))
    return {
        "id": key_id,
        "label": _attribute(key, Attribute.LABEL, ""),
        "type": key_type,
        "always_authenticate": bool(_attribute(key, Attribute.ALWAYS_AUTHENTICATE, False)),
        "private": bool(_attribute(key, Attribute.PRIVATE, True)),
        "public": _public_part(session, key, key_id, key_type),
    }


def certificates(session: Any) -> list[tuple[bytes, bytes]]:
    """CKA_ID and CKA_VALUE of each certificate."""
    found = (
        (_attribute(each, Attribute.ID, b""), _attribute(each, Attribute.VALUE, b""))
        for each in _objects(session, ObjectClass.CERTIFICATE)
    )
    return [(key_id, value) for key_id, value in found if value]


def belongings(session: Any, key: Any) -> list[Any]:
    """A private key with the public key and the certificates of its CKA_ID."""
    key_id = _attribute(key, Attribute.ID, b"")
    kinds = (ObjectClass.PUBLIC_KEY, ObjectClass.CERTIFICATE)
    return [key, *(each for kind in kinds if key_id for each in _objects(session, kind, key_id))]


def destroy(objects: list[Any]) -> None:
    """C_DestroyObject."""
    for each in objects:
        each.destroy()


def store_certificate(session: Any, key: Any, subject: bytes, label: str, certificate: bytes) -> None:
    """A certificate object beside a key; those of the key that were there go after it is stored."""
    key_id = _attribute(key, Attribute.ID, b"")
    old = _objects(session, ObjectClass.CERTIFICATE, key_id) if key_id else []
    session.create_object(
        {
            Attribute.CLASS: ObjectClass.CERTIFICATE,
            Attribute.CERTIFICATE_TYPE: pkcs11.CertificateType.X_509,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: False,
            Attribute.SUBJECT: subject,
            Attribute.LABEL: label,
            Attribute.ID: key_id,
            Attribute.VALUE: certificate,
        }
    )
    destroy(old)


# Keys -------------------------------------------------------------------------------------------------------


def sign(key: Any, mechanism: int, parameters: list[int] | None, data: bytes, pin: str | None) -> bytes:
    """C_SignInit, C_Login with CKU_CONTEXT_SPECIFIC if a PIN is given, C_Sign. Raises `TokenNotReady`."""
    if not isinstance(key, pkcs11.SignMixin):
        raise TokenNotReady("The key of the PKCS#11 token may not sign (CKA_SIGN); make another one.")
    pss = None
    if parameters is not None:
        digest, mgf, salt = parameters
        pss = (pkcs11.Mechanism(digest), pkcs11.MGF(mgf), salt)
    return bytes(key.sign(data, mechanism=pkcs11.Mechanism(mechanism), mechanism_param=pss, pin=pin))


def generate(session: Any, key_type: int, size: int, params: bytes, key_id: bytes, label: str) -> Any:
    """A private key that may sign and nothing else, as far as the module lets us say so: TPMs do not."""
    kind = _KEY_TYPES[KeyType(key_type)]
    both = {"id": key_id, "label": label, "store": True}
    can = {"capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY}
    private = {Attribute.EXTRACTABLE: False}
    strict = {**both, **can, "private_template": private}
    try:
        return _key_pair(session, kind, size, params, strict)
    except _TEMPLATE_REFUSED:
        open_ones = {"public_template": _LEFT_OPEN, "private_template": {**private, **_LEFT_OPEN}}
        return _key_pair(session, kind, size, params, {**strict, **open_ones})


def _key_pair(session: Any, kind: pkcs11.KeyType, size: int, params: bytes, options: dict[str, Any]) -> Any:
    if kind is pkcs11.KeyType.RSA:
        _, key = session.generate_keypair(kind, size, **options)
    else:
        domain = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: params}, local=True)
        _, key = domain.generate_keypair(**options)
    return key


def _public_part(session: Any, key: Any, key_id: bytes, key_type: int) -> dict[str, bytes]:
    """An RSA private key tells its public part itself; one on a curve has a public key object beside it."""
    wanted = _PUBLIC.get(key_type, {})
    known = {name: _attribute(key, attribute, b"") for name, attribute in wanted.items()}
    if all(known.values()) or not key_id:
        return known if all(known.values()) else {}
    for candidate in _objects(session, ObjectClass.PUBLIC_KEY, key_id):
        if int(_attribute(candidate, Attribute.KEY_TYPE, -1)) != key_type:
            continue
        values = {name: _attribute(candidate, attribute, b"") for name, attribute in wanted.items()}
        if all(values.values()) and _fits(key_type, known, values):
            return values
    return {}


def _fits(key_type: int, known: dict[str, bytes], values: dict[str, bytes]) -> bool:
    """CKA_ID may be that of several keys; SoftHSM spells the parameters of Ed25519 in two ways."""
    if key_type == KeyType.CKK_EC_EDWARDS:
        return True
    return all(values[name] == value for name, value in known.items() if value)


def _objects(
    session: Any, kind: ObjectClass, key_id: bytes | None = None, label: str | None = None
) -> list[Any]:
    template: dict[Attribute, Any] = {Attribute.CLASS: kind}
    if key_id is not None:
        template[Attribute.ID] = key_id
    if label is not None:
        template[Attribute.LABEL] = label
    return list(session.get_objects(template))[:_MAX_OBJECTS]


def _attribute(item: Any, attribute: Attribute, default: Any) -> Any:
    try:
        return item[attribute]
    except _UNREADABLE:
        return default


def _padded(text: str) -> str:
    """Fields are padded with spaces (section 3.2); tpm2-pkcs11 pads some with zeros."""
    return text.rstrip("\0 ")
