"""SoftwareBackend: `soft:NAME` is a sealed file in the state directory."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from dom0_broker.backends.base import NOTHING_KEPT, FoundToken, Kept, Pins, PinState
from dom0_broker.backends.software.element import (
    DEFAULT_OPTIONS,
    Applications,
    ElementOptions,
    SoftwareElement,
)
from dom0_broker.backends.software.keystore import Keystore, fresh_contents
from dom0_broker.backends.software.pin import OPERATOR_TRIES, USER_TRIES, StoredPin, is_acceptable
from dom0_broker.backends.software.piv_store import PivSecrets, fresh_piv
from vmtoken.cards import eap_tls_pins
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.cards.issuer import EapTlsIssuer
from vmtoken.errors import Conflict, InvalidRequest
from vmtoken.iso7816.commands import pad_pin
from vmtoken.secret import SecretBytes
from vmtoken.token import Assurance

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SUFFIX = ".element"
_DIRECTORY_MODE = 0o700


class SoftwareBackend:
    """Makes, opens and destroys software elements. Thread-safe; an element is for one thread at a time."""

    def __init__(
        self,
        directory: Path,
        sealing_key: SecretBytes,
        *,
        options: ElementOptions = DEFAULT_OPTIONS,
        pin_reserve: int = 1,
    ) -> None:
        """The directory is made when it is not there, for its owner alone."""
        self._directory = directory
        self._sealing_key = sealing_key
        self._options = options
        self._pin_reserve = pin_reserve
        self._lock = threading.Lock()
        self._keystores: WeakValueDictionary[str, Keystore] = WeakValueDictionary()
        directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)

    def create(self, locator: str, pins: Pins, piv: PivSecrets | None = None) -> None:
        """See `TokenBackend.create`; with `piv` the element can have the PIV application too."""
        user, operator = _stored(pins.user, USER_TRIES), _stored(pins.operator, OPERATOR_TRIES)
        contents = fresh_contents(user, operator, None if piv is None else fresh_piv(piv))
        Keystore.create(self._path(locator), self._sealing_key, contents)

    def open(self, locator: str, user_pin: SecretBytes | None, kept: Kept = NOTHING_KEPT) -> EapTlsCard:
        """See `TokenBackend.open`."""
        return EapTlsCard(
            self.connect(locator),
            user_pin,
            assurance=Assurance.SOFTWARE,
            t0=self._options.t0,
            extended=self._options.extended,
            pin_reserve=self._pin_reserve,
        )

    def open_issuer(
        self, locator: str, operator_pin: SecretBytes | None, user_pin: SecretBytes | None = None
    ) -> EapTlsIssuer:
        """See `TokenBackend.open_issuer`."""
        return EapTlsIssuer(
            self.connect(locator),
            operator_pin,
            label=locator.encode(),
            t0=self._options.t0,
            pin_reserve=self._pin_reserve,
        )

    def connect(self, locator: str) -> SoftwareElement:
        """The bare card. Raises `Conflict` for an element without an application that it should have."""
        keystore = self._keystore(locator)
        if Applications.PIV in self._options.applications and keystore.contents.piv is None:
            raise Conflict(
                f"The software element {locator!r} was made without the PIV application; make another one."
            )
        return SoftwareElement(keystore, self._options)

    def serial(self, locator: str) -> str:
        """The serial number that the card says, hexadecimal. Raises `TokenNotFound`."""
        return self._keystore(locator).contents.serial.hex()

    def pin_holder(self, locator: str) -> str:
        """See `TokenBackend.pin_holder`: the element."""
        return f"soft:{locator}"

    def pin_state(self, locator: str) -> PinState:
        """See `TokenBackend.pin_state`."""
        user, operator = eap_tls_pins.tries_left(self.connect(locator), t0=self._options.t0)
        return PinState(user, USER_TRIES, operator)

    def change_user_pin(self, locator: str, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """See `TokenBackend.change_user_pin`."""
        eap_tls_pins.change_user_pin(
            self.connect(locator), old_pin, new_pin, t0=self._options.t0, pin_reserve=self._pin_reserve
        )

    def unblock_user_pin(self, locator: str, code: SecretBytes, new_pin: SecretBytes) -> None:
        """See `TokenBackend.unblock_user_pin`."""
        eap_tls_pins.unblock_user_pin(
            self.connect(locator), code, new_pin, t0=self._options.t0, pin_reserve=self._pin_reserve
        )

    def discover(self) -> list[FoundToken]:
        """See `TokenBackend.discover`: the files; what is in them is sealed."""
        paths = sorted(self._directory.glob(f"*{_SUFFIX}"))
        return [FoundToken(f"soft:{path.stem}", str(path), application="software element") for path in paths]

    def present(self, locator: str) -> bool:
        """See `TokenBackend.present`."""
        return self._path(locator).exists()

    def reset(self, locator: str) -> None:
        """See `TokenBackend.reset`: an element does not hang."""
        self._keystore(locator)

    def watch(self, changed: Callable[[], None]) -> None:
        """See `TokenBackend.watch`: elements come and go by the operator's word alone."""

    def close(self) -> None:
        """See `TokenBackend.close`."""

    def delete(self, locator: str) -> None:
        """See `TokenBackend.delete`."""
        self._keystore(locator).destroy()
        with self._lock:
            self._keystores.pop(locator, None)

    def _keystore(self, locator: str) -> Keystore:
        """One object a file, so that two connections see the same PIN counters."""
        path = self._path(locator)
        with self._lock:
            keystore = self._keystores.get(locator)
            if keystore is None:
                keystore = Keystore.load(path, self._sealing_key)
                self._keystores[locator] = keystore
            return keystore

    def _path(self, locator: str) -> Path:
        if not _NAME.fullmatch(locator):
            raise InvalidRequest(
                f"A software element cannot have the name {locator!r}; use up to 63 of a-z, 0-9, '.', '_' "
                "and '-'."
            )
        return self._directory / f"{locator}{_SUFFIX}"


def _stored(pin: SecretBytes, tries: int) -> StoredPin:
    padded = pad_pin(pin) if 0 < len(pin) <= 8 else b""
    if not is_acceptable(padded):
        raise InvalidRequest("A PIN has 4 to 8 printable characters; choose another.")
    return StoredPin.of(padded, tries)
