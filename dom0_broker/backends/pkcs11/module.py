"""One PKCS#11 module in a process of its own, and sessions with its tokens, as the broker sees them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from dom0_broker.backends.pkcs11.codes import SlotFlag, TokenFlag
from dom0_broker.backends.pkcs11.objects import Found, public_key
from dom0_broker.backends.pkcs11.pins import SO_PIN, USER_PIN, PinKind, RefusedPins
from dom0_broker.backends.pkcs11.signing import Way
from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from dom0_broker.backends.process import DeviceProcess, NoAnswer
from vmtoken.errors import Conflict, PinRejected, TokenNotReady, TokenUnavailable
from vmtoken.secret import SecretBytes
from vmtoken.token import Assurance

_LANE: Final = "module"
"""One for all calls: the binding initialises modules for one thread. It is free whenever it is our turn."""

_CHILD: Final = "dom0_broker.backends.pkcs11.child"

_GENERATION: Final = 120.0
"""Seconds for a key pair: RSA in a TPM or a card takes up to a minute."""


class ModuleBusy(TokenUnavailable):
    """Others had the module for so long that it was never our turn; it is well."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """CK_TOKEN_INFO and what belongs to it, at one moment."""

    slot_id: int
    slot_description: str
    slot_flags: SlotFlag
    token: str
    manufacturer: str
    model: str
    serial: str
    flags: TokenFlag
    mechanisms: frozenset[int] = field(repr=False)

    @classmethod
    def of(cls, answer: dict[str, Any]) -> TokenInfo:
        """From what the module's process says."""
        flags = {"slot_flags": SlotFlag(answer["slot_flags"]), "flags": TokenFlag(answer["flags"])}
        return cls(**{**answer, **flags, "mechanisms": frozenset(answer["mechanisms"])})

    @property
    def identity(self) -> tuple[str, str]:
        """What stays when it is moved to another slot."""
        return (self.token, self.serial)

    @property
    def assurance(self) -> Assurance:
        """Hardware where the module says so; its word is all that there is."""
        is_hardware = SlotFlag.CKF_HW_SLOT in self.slot_flags
        return Assurance.CARD_SIGNATURE if is_hardware else Assurance.SOFTWARE

    def is_meant_by(self, uri: Pkcs11Uri) -> bool:
        """Whether label, serial number, model and manufacturer fit."""
        return uri.matches_token(
            token=self.token, manufacturer=self.manufacturer, serial=self.serial, model=self.model
        )


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key of a token."""

    id: bytes
    label: str
    type: int
    always_authenticate: bool
    private: bool
    public: dict[str, bytes] = field(repr=False)

    def public_key(self) -> PublicKeyTypes | None:
        """None when the token does not tell it, or has a kind of key that is of no use here."""
        try:
            return public_key(self.type, self.public)
        except ValueError:
            return None


class Module:
    """Thread-safe; calls are made one after another. A module that hangs or breaks down is loaded anew.

    Every method raises `TokenUnavailable`.
    """

    def __init__(
        self, library: Path, *, timeout: float, pin_reserve: int, environment: Mapping[str, str]
    ) -> None:
        """`timeout`, in seconds, is for one call of any function but key generation."""
        self.library = library
        self._timeout = timeout
        self._pin_reserve = pin_reserve
        name = f"PKCS#11 module {library.name}"
        self._process = DeviceProcess(_CHILD, [str(library)], name=name, environment=environment)
        self._refused = RefusedPins()
        self._turn = threading.Lock()
        self.last_seen: tuple[TokenInfo, ...] = ()
        """What `tokens` found last; nothing while the module does not answer."""

    def describes(self, uri: Pkcs11Uri) -> bool:
        """Whether the library fits what the URI says of it."""
        if (uri.library_manufacturer, uri.library_description, uri.library_version) == (None, None, None):
            return True
        info = self.call("library")
        major, minor = info["version"]
        return uri.matches_library(
            manufacturer=info["manufacturer"], description=info["description"], version=(major, minor)
        )

    def tokens(self, *, refresh: bool = False) -> list[TokenInfo]:
        """Those that are there; `refresh` lets a module look again that does so only at its start."""
        try:
            found = [TokenInfo.of(answer) for answer in self.call("refresh" if refresh else "tokens")]
        except ModuleBusy:
            raise
        except TokenUnavailable:
            self.last_seen = ()
            raise
        self.last_seen = tuple(found)
        return found

    def look(self, token: TokenInfo) -> tuple[list[KeyInfo], list[Found]]:
        """Keys and certificates to be seen without a PIN."""
        answer = self.call("look", token.slot_id)
        keys = [KeyInfo(**key) for key in answer["keys"]]
        return keys, [Found(*certificate) for certificate in answer["certificates"]]

    def open(self, token: TokenInfo, pin: SecretBytes | None, *, write: bool = False) -> Session:
        """Log in. Raises `PinRejected`, `PinBlocked`, `PinMissing`, `TokenNotReady`."""
        arguments = (token.slot_id, token.serial, pin, self._pin_reserve, write)
        answer = self._with_pin("login", token, pin, USER_PIN, *arguments)
        return Session(self, token, answer["handle"], logged_in=answer["logged_in"])

    def change_pin(self, token: TokenInfo, old: SecretBytes, new: SecretBytes) -> None:
        """Raises `PinRejected`, `PinBlocked`, `InvalidRequest`, `TokenNotReady`."""
        self._with_pin("change_pin", token, old, USER_PIN, token.slot_id, old, new, self._pin_reserve)

    def unblock_pin(self, token: TokenInfo, so_pin: SecretBytes, new: SecretBytes) -> None:
        """Raises `PinRejected`, `PinBlocked`, `InvalidRequest`: about the SO PIN."""
        self._with_pin("unblock_pin", token, so_pin, SO_PIN, token.slot_id, so_pin, new, self._pin_reserve)
        self._refused.forget((USER_PIN.name, *token.identity))

    def sign_with_pin(self, token: TokenInfo, pin: SecretBytes, *arguments: Any) -> Any:
        """C_Sign with CKU_CONTEXT_SPECIFIC before it."""
        return self._with_pin("sign", token, pin, USER_PIN, *arguments)

    def call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Ask the process; see `child.Module`. The time begins when it is our turn."""
        limit = timeout or self._timeout
        with self._our_turn(limit):
            return self._ask(method, arguments, limit)

    def reset(self) -> None:
        """End the process; the next call starts another at once, and PINs that were refused may be tried."""
        self._refused.clear()
        self._process.kill()

    def close(self) -> None:
        """End the process for good."""
        self._process.close()

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return self._process.pid

    def _with_pin(
        self, method: str, token: TokenInfo, pin: SecretBytes | None, kind: PinKind, *arguments: Any
    ) -> Any:
        """One try at the most for each PIN that turns out to be wrong, however many threads come with it."""
        if pin is None:
            return self.call(method, *arguments)
        owner = (kind.name, *token.identity)
        with self._our_turn(self._timeout):
            self._refused.check(owner, pin, kind)
            try:
                answer = self._ask(method, arguments, self._timeout)
            except PinRejected:
                self._refused.add(owner, pin)
                raise
            self._refused.forget(owner)
            return answer

    @contextlib.contextmanager
    def _our_turn(self, limit: float) -> Iterator[None]:
        """Raises `ModuleBusy`."""
        if not self._turn.acquire(timeout=limit):
            raise ModuleBusy(
                f"The PKCS#11 module {self.library.name} is busy with other tokens; try again.",
                retry_after=limit,
            )
        try:
            yield
        finally:
            self._turn.release()

    def _ask(self, method: str, arguments: Sequence[Any], limit: float) -> Any:
        try:
            return self._process.call(_LANE, method, *arguments, timeout=limit)
        except TokenUnavailable as error:
            if isinstance(error, NoAnswer) or "broken" in error.metadata:
                self._process.give_up()
            raise


class Session:
    """A token that is open, and the key in it that was found."""

    def __init__(self, module: Module, token: TokenInfo, handle: str, *, logged_in: bool) -> None:
        self.module = module
        self.token = token
        self.logged_in = logged_in
        self._handle = handle
        self._process = module.pid
        self._closed = False

    @property
    def needs_login(self) -> bool:
        """Whether private objects are behind a PIN."""
        return TokenFlag.CKF_LOGIN_REQUIRED in self.token.flags

    def find(self, uri: Pkcs11Uri) -> KeyInfo | None:
        """The private key of the URI; the URI of a certificate means the key with its CKA_ID."""
        by_certificate = uri.type == "cert"
        answer = self.module.call("find", self._handle, uri.id, uri.object, by_certificate)
        return None if answer is None else KeyInfo(**answer)

    def certificates(self) -> list[Found]:
        """All that the token has."""
        return [Found(*certificate) for certificate in self.module.call("certificates", self._handle)]

    def sign(self, way: Way, data: bytes, pin: SecretBytes | None) -> bytes:
        """C_Sign with the key that was found. Raises the PIN errors of `Module.open` when one is given."""
        self._check_open()
        arguments = (self._handle, way.mechanism, way.parameters, data, pin)
        try:
            if pin is None:
                signature: bytes = self.module.call("sign", *arguments)
            else:
                signature = self.module.sign_with_pin(self.token, pin, *arguments)
        except Conflict as error:
            raise TokenNotReady(
                f"The PKCS#11 token lists {way.mechanism.name}, but does not sign with it: {error.message}"
            ) from error
        return signature

    def generate(self, key_type: int, size: int, params: bytes, key_id: bytes, label: str) -> KeyInfo:
        """A new key pair in place of the one that was found. Raises `Conflict` if the token makes none."""
        arguments = (self._handle, key_type, size, params, key_id, label)
        return KeyInfo(**self.module.call("generate", *arguments, timeout=_GENERATION))

    def store_certificate(self, subject: bytes, label: str, certificate: bytes) -> None:
        """Raises `Conflict` where the token takes none."""
        self.module.call("store_certificate", self._handle, subject, label, certificate)

    def destroy_key(self) -> None:
        """With its public key and certificates. Raises `Conflict`."""
        self.module.call("destroy", self._handle)

    def close(self) -> None:
        """May be called twice; the token may be gone."""
        if self._closed:
            return
        self._closed = True
        if self.module.pid == self._process:  # another process knows nothing of us
            with contextlib.suppress(TokenUnavailable):
                self.module.call("logout", self._handle)

    def _check_open(self) -> None:
        if self._closed:
            raise TokenUnavailable("The key of the PKCS#11 token was closed; open it again.")


def required_public_key(key: KeyInfo, certificates: Sequence[Found]) -> PublicKeyTypes:
    """Of the key itself, or of a certificate with its CKA_ID. Raises `TokenNotReady`."""
    known = key.public_key()
    if known is not None:
        return known
    for found in certificates:
        if key.id and found.id == key.id and (public := found.public_key()) is not None:
            return public
    raise TokenNotReady(
        "The PKCS#11 token does not tell the public key, or it is of a kind that TLS does not use here: "
        "put the public key or the certificate beside the private key, with the same CKA_ID."
    )
