"""The PIV card application: NIST SP 800-73-4 parts 1 and 2; section numbers are those of part 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dom0_broker.backends.software import keys
from dom0_broker.backends.software.card_error import CardError
from dom0_broker.backends.software.keystore import Keystore
from dom0_broker.backends.software.parts import ChainingRule
from dom0_broker.backends.software.pin import StoredPin, try_pin
from dom0_broker.backends.software.piv_authentication import ManagementAuthentication, use_private_key
from dom0_broker.backends.software.piv_store import StoredPiv, is_pin, is_puk
from vmtoken.cards.piv_codes import (
    AID,
    KEY_ALGORITHMS,
    SOFTWARE_LABEL,
    Algorithm,
    DataObject,
    Instruction,
    PinPolicy,
    Reference,
    Slot,
)
from vmtoken.cards.piv_management import ManagementKey
from vmtoken.cards.piv_objects import DATA_TAG, algorithm_of, encode_public_key
from vmtoken.codec import DecodeError
from vmtoken.iso7816.apdu import CommandApdu
from vmtoken.iso7816.channel import Chaining
from vmtoken.iso7816.commands import PIN_LENGTH
from vmtoken.iso7816.status import StatusWord
from vmtoken.iso7816.tlv import BerTlv, decode_fields, encode_tlv
from vmtoken.secret import SecretBytes

_RID_LENGTH = 5
"""Octets of an AID that say whose application it is; a shorter name selects nothing."""

_MAX_OBJECT = 1 << 12
"""Octets of a data object; the standard asks for 1905 or less, but for biometrics."""

_MAX_OBJECTS = 64

_CURRENT_TEMPLATE = (0x3F, 0xFF)
_TAG_LIST, _DYNAMIC_TEMPLATE = 0x5C, 0x7C
_CONTROL_REFERENCE, _MECHANISM, _MECHANISM_PARAMETER = 0xAC, 0x80, 0x81

_STORABLE: Final = (range(0x5FC101, 0x5FC124), range(0x5FFF00, 0x600000))
"""Data objects of the standard, and those that makers of cards use for themselves."""

_PIN_TO_READ: Final = frozenset(
    (
        DataObject.PRINTED_INFORMATION,
        DataObject.CARD_HOLDER_FINGERPRINTS,
        DataObject.CARD_HOLDER_FACIAL_IMAGE,
        DataObject.CARD_HOLDER_IRIS_IMAGES,
        DataObject.PAIRING_CODE,
    )
)
"""Part 1 table 2."""

_DISCOVERY_OBJECT = encode_tlv(0x7E, encode_tlv(0x4F, AID) + encode_tlv(0x5F2F, b"\x40\x00"))
"""Part 1 section 3.3.2: there is the application's PIN, no global one, no biometrics."""

_RESET_STATUS = 0xFF
"""P1 of VERIFY (section 3.2.1)."""


class PivApplet:
    """The application of one powered card."""

    cla = 0x00
    fetch = False
    chaining = ChainingRule(
        Chaining.CLA,
        0x00,
        {
            Instruction.GENERAL_AUTHENTICATE: 1024,
            Instruction.PUT_DATA: _MAX_OBJECT + 16,
            Instruction.GENERATE_ASYMMETRIC_KEY_PAIR: 256,
        },
    )

    def __init__(self, keystore: Keystore, random: Callable[[int], bytes]) -> None:
        """The keystore's contents have a PIV part."""
        self._keystore = keystore
        self._is_verified = False
        self._was_verified_just_now = False
        self._verified_now = False
        self._management = ManagementAuthentication(self._management_key, random)
        self._loaded: dict[int, tuple[bytes, keys.PrivateKey]] = {}
        self._commands: dict[int, Callable[[CommandApdu], bytes]] = {
            Instruction.VERIFY: self._verify,
            Instruction.CHANGE_REFERENCE_DATA: self._change_reference_data,
            Instruction.RESET_RETRY_COUNTER: self._reset_retry_counter,
            Instruction.GENERAL_AUTHENTICATE: self._general_authenticate,
            Instruction.GENERATE_ASYMMETRIC_KEY_PAIR: self._generate,
            Instruction.GET_DATA: self._get_data,
            Instruction.PUT_DATA: self._put_data,
        }

    def is_named(self, name: bytes) -> bool:
        """Its AID, with or without version, or less of it (section 3.1.1)."""
        return len(name) >= _RID_LENGTH and AID.startswith(name)

    def select(self) -> bytes:
        """SELECT (section 3.1.1): an application that is selected again keeps its security status."""
        mechanisms = b"".join(encode_tlv(0x80, bytes((each,))) for each in KEY_ALGORITHMS.values())
        return encode_tlv(
            0x61,
            encode_tlv(0x4F, AID[_RID_LENGTH:])
            + encode_tlv(0x79, encode_tlv(0x4F, AID[:_RID_LENGTH]))
            + encode_tlv(0x50, SOFTWARE_LABEL.encode())
            + encode_tlv(0xAC, mechanisms + encode_tlv(0x06, b"\x00")),
        )

    def power_down(self) -> None:
        """Forget who has shown what; wipe what is in memory."""
        self._is_verified = self._verified_now = False
        self._management.forget()
        self._loaded.clear()

    def execute(self, command: CommandApdu) -> bytes:
        """The data that answers a command; raises `CardError`."""
        if command.cla != self.cla:
            raise CardError(StatusWord.CLA_NOT_SUPPORTED)
        handler = self._commands.get(command.ins)
        if handler is None:
            raise CardError(StatusWord.INS_NOT_SUPPORTED)
        self._was_verified_just_now, self._verified_now = self._verified_now, False
        return handler(command)

    @property
    def _piv(self) -> StoredPiv:
        piv = self._keystore.contents.piv
        assert piv is not None, "the element has this application only with its part"
        return piv

    def _save(self, piv: StoredPiv) -> None:
        self._keystore.save(msgspec.structs.replace(self._keystore.contents, piv=piv))

    # PIN and PUK (sections 3.2.1 to 3.2.3).

    def _verify(self, command: CommandApdu) -> bytes:
        if command.p2 != Reference.APPLICATION_PIN:
            raise CardError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        if command.p1 == _RESET_STATUS and not command.data:
            self._is_verified = False
            return b""
        _require(command.p1 == 0x00, StatusWord.INCORRECT_P1_P2)
        if not command.data:
            _require(self._is_verified, _tries_left(self._piv.pin))
            return b""
        _require(is_pin(command.data), StatusWord.WRONG_DATA)
        self._check_pin(command.data)
        self._is_verified = self._verified_now = True
        return b""

    def _change_reference_data(self, command: CommandApdu) -> bytes:
        _require(command.p1 == 0x00, StatusWord.INCORRECT_P1_P2)
        old, new = _two_pins(command.data)
        match command.p2:
            case Reference.APPLICATION_PIN:
                _require(is_pin(new), StatusWord.WRONG_DATA)
                self._check_pin(old)
                self._save_pin(StoredPin.of(new, self._piv.pin.tries))
                self._is_verified = True
            case Reference.PUK:
                _require(is_puk(new), StatusWord.WRONG_DATA)
                self._check_puk(old)
                self._save_puk(StoredPin.of(new, self._piv.puk.tries))
            case _:
                raise CardError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        return b""

    def _reset_retry_counter(self, command: CommandApdu) -> bytes:
        _require(command.p1 == 0x00, StatusWord.INCORRECT_P1_P2)
        _require(command.p2 == Reference.APPLICATION_PIN, StatusWord.REFERENCED_DATA_NOT_FOUND)
        puk, new = _two_pins(command.data)
        _require(is_pin(new), StatusWord.WRONG_DATA)
        self._check_puk(puk)
        self._is_verified = False
        self._save_pin(StoredPin.of(new, self._piv.pin.tries))
        return b""

    def _check_pin(self, candidate: bytes) -> None:
        self._is_verified = False
        _require(not self._piv.pin.is_blocked, StatusWord.PIN_BLOCKED)
        if not try_pin(self._piv.pin, candidate, self._save_pin):
            raise CardError(_tries_left(self._piv.pin))

    def _check_puk(self, candidate: bytes) -> None:
        _require(not self._piv.puk.is_blocked, StatusWord.PIN_BLOCKED)
        if not try_pin(self._piv.puk, candidate, self._save_puk):
            raise CardError(_tries_left(self._piv.puk))

    def _save_pin(self, pin: StoredPin) -> None:
        self._save(msgspec.structs.replace(self._piv, pin=pin))

    def _save_puk(self, puk: StoredPin) -> None:
        self._save(msgspec.structs.replace(self._piv, puk=puk))

    # Keys (sections 3.2.4 and 3.3.2).

    def _general_authenticate(self, command: CommandApdu) -> bytes:
        template = _template(command.data, _DYNAMIC_TEMPLATE)
        if command.p2 == Reference.MANAGEMENT_KEY:
            answer = self._management.answer(command.p1, template)
            inside = b"".join(encode_tlv(tag, value) for tag, value in answer.items())
            return encode_tlv(_DYNAMIC_TEMPLATE, inside) if answer else b""
        slot = _slot(command.p2)
        key = self._private_key(slot)
        _require(command.p1 == algorithm_of(key.public_key()), StatusWord.INCORRECT_P1_P2)
        self._require_pin_for(slot)
        return encode_tlv(_DYNAMIC_TEMPLATE, encode_tlv(0x82, use_private_key(key, template)))

    def _generate(self, command: CommandApdu) -> bytes:
        """A fresh key pair; the certificate of the old one stays until somebody replaces it."""
        self._require_management()
        _require(command.p1 == 0x00, StatusWord.INCORRECT_P1_P2)
        slot = _slot(command.p2)
        mechanism = _template(command.data, _CONTROL_REFERENCE)
        _require(mechanism.keys() <= {_MECHANISM, _MECHANISM_PARAMETER}, StatusWord.WRONG_DATA)
        wanted = int.from_bytes(mechanism.get(_MECHANISM, b""), "big")
        algorithm = next((name for name, each in KEY_ALGORITHMS.items() if each == wanted), None)
        if algorithm is None:
            raise CardError(StatusWord.WRONG_DATA)
        key = keys.generate(algorithm)
        self._save(msgspec.structs.replace(self._piv, keys={**self._piv.keys, slot: keys.pkcs8(key)}))
        public = key.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return encode_public_key(public)

    def _require_pin_for(self, slot: Slot) -> None:
        is_given = {
            PinPolicy.NEVER: True,
            PinPolicy.ONCE: self._is_verified,
            PinPolicy.ALWAYS: self._is_verified and self._was_verified_just_now,
        }
        _require(is_given[slot.pin_policy], StatusWord.SECURITY_STATUS_NOT_SATISFIED)

    def _require_management(self) -> None:
        _require(self._management.is_authenticated, StatusWord.SECURITY_STATUS_NOT_SATISFIED)

    def _management_key(self) -> ManagementKey:
        piv = self._piv
        return ManagementKey(Algorithm(piv.management_algorithm), SecretBytes(piv.management_key))

    def _private_key(self, slot: Slot) -> keys.PrivateKey:
        """Parsed once: for RSA that takes as long as a signature."""
        pkcs8 = self._piv.keys.get(slot)
        if pkcs8 is None:
            raise CardError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        loaded = self._loaded.get(slot)
        if loaded is None or loaded[0] is not pkcs8:
            loaded = self._loaded[slot] = (pkcs8, keys.load(pkcs8))
        return loaded[1]

    # Data objects (sections 3.1.2 and 3.3.1).

    def _get_data(self, command: CommandApdu) -> bytes:
        _require((command.p1, command.p2) == _CURRENT_TEMPLATE, StatusWord.INCORRECT_P1_P2)
        fields = _fields(command.data)
        _require(fields.keys() == {_TAG_LIST}, StatusWord.WRONG_DATA)
        tag = int.from_bytes(fields[_TAG_LIST], "big")
        if tag == DataObject.DISCOVERY_OBJECT:
            return _DISCOVERY_OBJECT
        value = self._piv.objects.get(tag)
        if value is None:
            raise CardError(StatusWord.FILE_NOT_FOUND)
        _require(self._is_verified or tag not in _PIN_TO_READ, StatusWord.SECURITY_STATUS_NOT_SATISFIED)
        return encode_tlv(DATA_TAG, value)

    def _put_data(self, command: CommandApdu) -> bytes:
        self._require_management()
        _require((command.p1, command.p2) == _CURRENT_TEMPLATE, StatusWord.INCORRECT_P1_P2)
        fields = _fields(command.data)
        _require(fields.keys() == {_TAG_LIST, DATA_TAG}, StatusWord.WRONG_DATA)
        tag, value = int.from_bytes(fields[_TAG_LIST], "big"), fields[DATA_TAG]
        _require(any(tag in tags for tags in _STORABLE), StatusWord.FUNCTION_NOT_SUPPORTED)
        objects = {name: octets for name, octets in self._piv.objects.items() if name != tag}
        if value:
            objects[tag] = value
        _require(len(value) <= _MAX_OBJECT and len(objects) <= _MAX_OBJECTS, StatusWord.NOT_ENOUGH_MEMORY)
        self._save(msgspec.structs.replace(self._piv, objects=objects))
        return b""


def _require(condition: bool, otherwise: int) -> None:
    if not condition:
        raise CardError(otherwise)


def _tries_left(pin: StoredPin) -> int:
    return StatusWord.PIN_BLOCKED if pin.is_blocked else 0x63C0 | pin.tries_left


def _slot(p2: int) -> Slot:
    try:
        return Slot(p2)
    except ValueError:
        raise CardError(StatusWord.INCORRECT_P1_P2) from None


def _two_pins(data: bytes) -> tuple[bytes, bytes]:
    _require(len(data) == 2 * PIN_LENGTH, StatusWord.WRONG_LENGTH)
    return data[:PIN_LENGTH], data[PIN_LENGTH:]


def _template(data: bytes, tag: int) -> dict[int, bytes]:
    """The fields of the one data object that a command holds."""
    try:
        item = BerTlv.decode(data)
    except DecodeError:
        raise CardError(StatusWord.WRONG_DATA) from None
    _require(item.tag == tag, StatusWord.WRONG_DATA)
    return _fields(item.value)


def _fields(data: bytes) -> dict[int, bytes]:
    try:
        return decode_fields(data)
    except DecodeError:
        raise CardError(StatusWord.WRONG_DATA) from None
