"""The EAP-TLS application: its commands, PINs, identities and personalisation.

`docs/card-profile.md` describes every command; the section numbers are those of
draft-urien-eap-smartcard-25.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dom0_broker.backends.software import keys
from dom0_broker.backends.software.card_error import CardError
from dom0_broker.backends.software.eap_tls_applet import EapTlsApplet, LoadedIdentity
from dom0_broker.backends.software.keystore import Contents, Keystore, StoredIdentity
from dom0_broker.backends.software.parts import ChainingRule
from dom0_broker.backends.software.pin import StoredPin, is_acceptable, try_pin
from vmtoken.cards.codes import (
    AID,
    CLA,
    DataObject,
    Features,
    IdentityCommand,
    Instruction,
    KeyAlgorithm,
    PinReference,
    StateCommand,
)
from vmtoken.cards.profile import Fci, ProfileData, decode_certificates, decode_names
from vmtoken.codec import DecodeError
from vmtoken.csr import check_chain
from vmtoken.iso7816.apdu import CommandApdu
from vmtoken.iso7816.channel import ApduLimits, Chaining
from vmtoken.iso7816.commands import PIN_LENGTH
from vmtoken.iso7816.status import StatusWord
from vmtoken.iso7816.tlv import decode_fields
from vmtoken.tls.certificates import TrustStore, subject_of
from vmtoken.tls.codes import ProtocolVersion

_MAX_IDENTITIES = 8
_MAX_LABEL = 64
_MAX_CHAIN = 8
_MAX_ANCHORS = 64
_SHORT_PIN_LENGTH = 4

_Command = Callable[[CommandApdu], bytes]


class Application:
    """The application of one powered card."""

    cla = CLA
    fetch = True
    chaining = ChainingRule(
        Chaining.P1,
        CLA,
        {
            Instruction.PROCESS_EAP: 0x10000 + 1024,
            Instruction.PUT_DATA: 0x10000,
            Instruction.TAKE_TICKET: 0x10000 + 256,
            Instruction.CERTIFICATE_REQUEST: 4096,
        },
    )
    """The longest EAP packet and its Start parameters, what a personalisation needs, the longest
    NewSessionTicket of RFC 8446."""

    def __init__(
        self, keystore: Keystore, limits: ApduLimits, features: Features, random: Callable[[int], bytes]
    ) -> None:
        self._keystore = keystore
        self._seen = keystore.contents
        self._limits = limits
        self._features = features
        self._verified: set[PinReference] = set()
        self._next_identity = 0
        self._applet = EapTlsApplet(random)
        self._commands: dict[int, _Command] = {
            Instruction.PROCESS_EAP: self._process_eap,
            Instruction.EXPORTED_PARAMETER: self._exported_parameter,
            Instruction.VERIFY_PIN: self._verify_pin,
            Instruction.CHANGE_PIN: self._change_pin,
            Instruction.UNBLOCK_PIN: self._unblock_pin,
            Instruction.SET_IDENTITY: self._set_identity,
            Instruction.IDENTITIES: self._identities,
            Instruction.CURRENT_IDENTITY: self._current_identity,
            Instruction.STATE: self._state,
            Instruction.PROFILE_DATA: self._profile_data,
            Instruction.SESSION_KEY: self._session_key,
            Instruction.TAKE_TICKET: self._take_ticket,
            Instruction.GENERATE_KEY: self._generate_key,
            Instruction.CERTIFICATE_REQUEST: self._certificate_request,
            Instruction.PUT_DATA: self._put_data,
        }

    def is_named(self, name: bytes) -> bool:
        """Its whole AID (section 9.4)."""
        return name == AID

    def power_down(self) -> None:
        """Wipe what is in memory."""
        self._applet.use_identity(None)

    def select(self) -> bytes:
        """SELECT (section 9.4): PINs and the handshake are forgotten, the answer is the FCI.

        The preferred identity is the current one until Set-Identity says otherwise (annex 5).
        """
        self._verified.clear()
        self._next_identity = 0
        identities = self._contents.identities
        if identities:
            self._use(identities[0])
        else:
            self._applet.use_identity(None)
        versions = (ProtocolVersion.TLS_1_3, ProtocolVersion.TLS_1_2)
        return Fci(self._contents.serial, versions, self._limits, self._features).encode()

    def execute(self, command: CommandApdu) -> bytes:
        """The data that answers a command; raises `CardError`."""
        if command.cla != self.cla:
            raise CardError(StatusWord.CLA_NOT_SUPPORTED)
        handler = self._commands.get(command.ins)
        if handler is None:
            raise CardError(StatusWord.INS_NOT_SUPPORTED)
        return handler(command)

    @property
    def _contents(self) -> Contents:
        return self._keystore.contents

    # The handshake: user PIN.

    def _process_eap(self, command: CommandApdu) -> bytes:
        self._require_user()
        _check_parameters(command.p1 | command.p2, 0x00)
        self._reload_identity()
        return self._applet.process_eap(command.data)

    def _exported_parameter(self, command: CommandApdu) -> bytes:
        self._require_user()
        _check_parameters(command.p1 | command.p2, 0x00)
        if len(command.data) != 1:
            raise CardError(StatusWord.WRONG_LENGTH)
        return self._applet.export(command.data[0])

    def _session_key(self, command: CommandApdu) -> bytes:
        self._require_user()
        _check_parameters(command.p1 | command.p2, 0x00)
        return self._applet.session_key(command.le)

    def _take_ticket(self, command: CommandApdu) -> bytes:
        self._require_user()
        _check_parameters(command.p1 | command.p2, 0x00)
        fields = _fields(command.data, range(0x80, 0x82))
        return self._applet.take_ticket(fields.get(0x80, b""), fields.get(0x81, b""))

    def _state(self, command: CommandApdu) -> bytes:
        self._require_any()
        _check_parameters(command.p2, 0x00)
        if command.p1 == StateCommand.GET:
            return bytes((self._applet.state,))
        _check_parameters(command.p1, StateCommand.RESET)
        self._applet.reset_state()
        return b""

    # PINs (section 9.3).

    def _verify_pin(self, command: CommandApdu) -> bytes:
        _check_parameters(command.p1, 0x00)
        reference = _pin_reference(command.p2)
        if not command.data:
            return self._pin_status(reference)
        if len(command.data) not in (_SHORT_PIN_LENGTH, PIN_LENGTH):
            raise CardError(StatusWord.WRONG_LENGTH)
        self._check_pin(reference, command.data.ljust(PIN_LENGTH, b"\xff"))
        self._verified.add(reference)
        return b""

    def _change_pin(self, command: CommandApdu) -> bytes:
        _check_parameters(command.p1, 0x00)
        reference = _pin_reference(command.p2)
        old, new = _two_pins(command.data)
        self._check_pin(reference, old)
        self._save_pin(reference, StoredPin.of(new, self._pin(reference).tries))
        return b""

    def _unblock_pin(self, command: CommandApdu) -> bytes:
        """The new user PIN, then the operator PIN: the order of section 9.3.5."""
        _check_parameters(command.p1 | command.p2, 0x00)
        code, new = command.data[PIN_LENGTH:], command.data[:PIN_LENGTH]
        if len(command.data) != 2 * PIN_LENGTH:
            raise CardError(StatusWord.WRONG_LENGTH)
        if not is_acceptable(new):
            raise CardError(StatusWord.WRONG_DATA)
        self._check_pin(PinReference.OPERATOR, code)
        self._verified.discard(PinReference.USER)
        self._save_pin(PinReference.USER, StoredPin.of(new, self._contents.user_pin.tries))
        return b""

    def _pin_status(self, reference: PinReference) -> bytes:
        if reference not in self._verified:
            raise CardError(self._pin_needed(reference))
        return b""

    def _check_pin(self, reference: PinReference, candidate: bytes) -> None:
        if self._pin(reference).is_blocked:
            raise CardError(StatusWord.PIN_BLOCKED)
        self._verified.discard(reference)
        if not try_pin(self._pin(reference), candidate, lambda pin: self._save_pin(reference, pin)):
            raise CardError(self._pin_needed(reference))

    def _pin_needed(self, reference: PinReference) -> int:
        pin = self._pin(reference)
        return StatusWord.PIN_BLOCKED if pin.is_blocked else 0x6300 | pin.tries_left

    def _pin(self, reference: PinReference) -> StoredPin:
        is_user = reference is PinReference.USER
        return self._contents.user_pin if is_user else self._contents.operator_pin

    def _save_pin(self, reference: PinReference, pin: StoredPin) -> None:
        if reference is PinReference.USER:
            self._keystore.save(msgspec.structs.replace(self._contents, user_pin=pin))
        else:
            self._keystore.save(msgspec.structs.replace(self._contents, operator_pin=pin))

    def _require_user(self) -> None:
        if PinReference.USER not in self._verified:
            raise CardError(self._pin_needed(PinReference.USER))

    def _require_operator(self) -> None:
        if PinReference.OPERATOR not in self._verified:
            raise CardError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)

    def _require_any(self) -> None:
        if not self._verified:
            raise CardError(self._pin_needed(PinReference.USER))

    # Identities (sections 9.5 to 9.11).

    def _set_identity(self, command: CommandApdu) -> bytes:
        self._require_any()
        _check_parameters(command.p1, 0x00)
        _check_parameters(command.p2, IdentityCommand.SET)
        self._use(self._identity(command.data))
        return b""

    def _identities(self, command: CommandApdu) -> bytes:
        _check_parameters(command.p1, 0x00)
        match command.p2:
            case IdentityCommand.GET_PREFERRED:
                self._require_any()
                return self._label_at(0)
            case IdentityCommand.GET_NEXT:
                self._require_any()
                label = self._label_at(self._next_identity % max(1, len(self._contents.identities)))
                self._next_identity += 1
                return label
            case IdentityCommand.ADD:
                self._require_operator()
                return self._add_identity(command.data)
            case IdentityCommand.DELETE:
                self._require_operator()
                return self._delete_identity(command.data)
        raise CardError(StatusWord.WRONG_P1_P2)

    def _current_identity(self, command: CommandApdu) -> bytes:
        self._require_any()
        _check_parameters(command.p1 | command.p2, 0x00)
        return self._current.label

    def _profile_data(self, command: CommandApdu) -> bytes:
        """The subscriber profile (section 9.10, annex 4)."""
        self._require_any()
        _check_parameters(command.p1 | command.p2, 0x00)
        current = self._current
        return ProfileData(current.label, current.chain, current.anchors).encode()

    def _label_at(self, index: int) -> bytes:
        if not self._contents.identities:
            raise CardError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        return self._contents.identities[index].label

    def _add_identity(self, label: bytes) -> bytes:
        if not 1 <= len(label) <= _MAX_LABEL or not label.isascii():
            raise CardError(StatusWord.WRONG_DATA)
        identities = self._contents.identities
        if any(identity.label == label for identity in identities):
            raise CardError(StatusWord.WRONG_DATA)
        if len(identities) >= _MAX_IDENTITIES:
            raise CardError(StatusWord.NOT_ENOUGH_MEMORY)
        self._save_identities((*identities, StoredIdentity(label)))
        return b""

    def _delete_identity(self, label: bytes) -> bytes:
        doomed = self._identity(label)
        if self._applet.identity is not None and self._applet.identity.label == label:
            self._applet.use_identity(None)
        self._save_identities(tuple(one for one in self._contents.identities if one is not doomed))
        return b""

    def _identity(self, label: bytes) -> StoredIdentity:
        for identity in self._contents.identities:
            if identity.label == label:
                return identity
        raise CardError(StatusWord.REFERENCED_DATA_NOT_FOUND)

    def _reload_identity(self) -> None:
        """Another connection to the same element may have personalised it."""
        if self._contents is not self._seen and self._applet.identity is not None:
            self._seen = self._contents
            if self._current is not self._applet.identity.stored:
                self._use(self._current)

    @property
    def _current(self) -> StoredIdentity:
        if self._applet.identity is None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return self._identity(self._applet.identity.label)

    def _use(self, identity: StoredIdentity) -> None:
        """Make it the current one; it is parsed once, for that takes as long as a handshake."""
        loaded = self._applet.identity
        if loaded is None or loaded.stored is not identity:
            loaded = LoadedIdentity.of(identity)
        self._applet.use_identity(loaded)

    def _save_identities(self, identities: tuple[StoredIdentity, ...]) -> None:
        self._keystore.save(msgspec.structs.replace(self._contents, identities=identities))

    def _replace_current(self, identity: StoredIdentity) -> None:
        """Keep the current identity's new state; the handshake and sessions of the old one are forgotten."""
        old = self._current
        self._save_identities(tuple(identity if one is old else one for one in self._contents.identities))
        self._use(identity)

    # Personalisation: operator PIN.

    def _generate_key(self, command: CommandApdu) -> bytes:
        """With P2 = 00 the public key that is there, else a fresh pair, whose certificate is yet to come."""
        self._require_operator()
        _check_parameters(command.p1, 0x00)
        if command.p2 == 0x00:
            return keys.public_key_info(self._private_key())
        try:
            algorithm = KeyAlgorithm(command.p2)
        except ValueError:
            raise CardError(StatusWord.FUNCTION_NOT_SUPPORTED) from None
        key = keys.generate(algorithm)
        self._replace_key(key)
        return keys.public_key_info(key)

    def _certificate_request(self, command: CommandApdu) -> bytes:
        self._require_operator()
        _check_parameters(command.p1 | command.p2, 0x00)
        fields = _fields(command.data, range(0x80, 0x82))
        try:
            subject = fields[0x80].decode()
            names = tuple(decode_names(fields.get(0x81, b"")))
            return keys.certificate_request(self._private_key(), subject, names)
        except (KeyError, ValueError):
            raise CardError(StatusWord.WRONG_DATA) from None

    def _put_data(self, command: CommandApdu) -> bytes:
        self._require_operator()
        _check_parameters(command.p1, 0x00)
        try:
            self._store(command.p2, command.data)
        except ValueError:
            raise CardError(StatusWord.WRONG_DATA) from None
        return b""

    def _store(self, reference: int, data: bytes) -> None:
        match reference:
            case DataObject.CERTIFICATE_CHAIN:
                chain = decode_certificates(data)
                _check_count(chain, _MAX_CHAIN)
                check_chain(keys.public_key_info(self._private_key()), chain)
                self._replace_current(msgspec.structs.replace(self._current, chain=chain))
            case DataObject.TRUST_ANCHORS:
                anchors = decode_certificates(data)
                _check_count(anchors, _MAX_ANCHORS)
                TrustStore(anchors)
                self._replace_current(msgspec.structs.replace(self._current, anchors=anchors))
            case DataObject.PRIVATE_KEY:
                self._replace_key(keys.load(data))
            case DataObject.SERVER_NAME:
                name = data.decode("ascii")
                subject_of(name)
                self._replace_current(msgspec.structs.replace(self._current, server_name=name))
            case _:
                raise CardError(StatusWord.WRONG_P1_P2)

    def _replace_key(self, key: keys.PrivateKey) -> None:
        identity = msgspec.structs.replace(self._current, private_key=keys.pkcs8(key), chain=())
        self._replace_current(identity)

    def _private_key(self) -> keys.PrivateKey:
        pkcs8 = self._current.private_key
        if pkcs8 is None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return keys.load(pkcs8)


def _check_parameters(value: int, expected: int) -> None:
    if value != expected:
        raise CardError(StatusWord.WRONG_P1_P2)


def _check_count(certificates: tuple[bytes, ...], limit: int) -> None:
    if len(certificates) > limit:
        raise CardError(StatusWord.NOT_ENOUGH_MEMORY)


def _pin_reference(p2: int) -> PinReference:
    try:
        return PinReference(p2)
    except ValueError:
        raise CardError(StatusWord.WRONG_P1_P2) from None


def _two_pins(data: bytes) -> tuple[bytes, bytes]:
    if len(data) != 2 * PIN_LENGTH:
        raise CardError(StatusWord.WRONG_LENGTH)
    old, new = data[:PIN_LENGTH], data[PIN_LENGTH:]
    if not is_acceptable(new):
        raise CardError(StatusWord.WRONG_DATA)
    return old, new


def _fields(data: bytes, allowed: range) -> dict[int, bytes]:
    try:
        fields = decode_fields(data)
    except DecodeError:
        raise CardError(StatusWord.WRONG_DATA) from None
    if not fields.keys() <= set(allowed):
        raise CardError(StatusWord.WRONG_DATA)
    return fields
