"""The inside of a module's process: who is logged in to which token, and what may be done with which key.

One lane calls it, so that the module sees one thread: the binding initialises it without locks. CKR codes
become our errors here; nothing in here tries a PIN twice.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dom0_broker.backends.child import outlet, serve
from dom0_broker.backends.pkcs11 import cryptoki
from dom0_broker.backends.pkcs11.codes import TokenFlag
from dom0_broker.backends.pkcs11.pins import SO_PIN, USER_PIN, PinKind, PinTags, check_user_pin
from vmtoken.errors import (
    Conflict,
    InvalidRequest,
    PinBlocked,
    PinMissing,
    TokenNotReady,
    TokenUnavailable,
)
from vmtoken.secret import SecretBytes

Result = TypeVar("Result")


@dataclass(slots=True)
class _Login:
    """A token that we are logged in to; PKCS#11 has one login a token and process."""

    session: Any
    serial: str
    tag: bytes
    users: int = 0


@dataclass(slots=True)
class _Opened:
    """What a handle stands for."""

    slot_id: int
    session: Any
    logged_in: bool
    key: Any = None


class Module:
    """One PKCS#11 library. Methods raise `TokenUnavailable`; `broken` in its metadata asks for a reload."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loaded: Any = None
        self._logins: dict[int, _Login] = {}
        self._opened: dict[str, _Opened] = {}
        self._tags = PinTags()
        self._losses: Counter[int] = Counter()
        """How often the token of a slot was lost since it last signed."""

    def handlers(self) -> Mapping[str, Callable[..., Any]]:
        """The methods that the broker may call."""
        methods: tuple[Callable[..., Any], ...] = (
            self.library, self.tokens, self.refresh, self.look, self.login, self.find, self.certificates,
            self.sign, self.generate, self.store_certificate, self.destroy, self.logout, self.change_pin,
            self.unblock_pin,
        )  # fmt: skip
        return {method.__name__: functools.partial(self._guarded, method) for method in methods}

    # Which tokens there are.

    def library(self) -> dict[str, Any]:
        """CK_INFO."""
        library = self._library()
        return {
            "manufacturer": library.manufacturer_id,
            "description": library.library_description,
            "version": list(library.library_version),
        }

    def tokens(self) -> list[dict[str, Any]]:
        """Each token that is initialised, in the order of its slots; not those that go just now."""
        described = []
        for token in cryptoki.tokens(self._library()):
            with contextlib.suppress(*cryptoki.TOKEN_LOST):
                if TokenFlag.CKF_TOKEN_INITIALIZED in cryptoki.flags(token):
                    described.append(cryptoki.describe(token))
        return described

    def refresh(self) -> list[dict[str, Any]]:
        """As `tokens`; a module that looks for tokens only at its start looks again, if nobody uses it."""
        if not self._opened:
            self._library().reinitialize()
        return self.tokens()

    def look(self, slot_id: int) -> dict[str, Any]:
        """Keys and certificates that can be seen in a token without its PIN, or with one already given."""
        session = self._token(slot_id).open()
        try:
            return {"keys": cryptoki.visible_keys(session), "certificates": cryptoki.certificates(session)}
        finally:
            cryptoki.close(session)

    # Sessions.

    def login(
        self, slot_id: int, serial: str, pin: SecretBytes | None, reserve: int, write: bool
    ) -> dict[str, Any]:
        """A handle. Raises `PinRejected`, `PinBlocked`, `TokenNotReady`; without a PIN for what is public."""
        token = self._token(slot_id)
        if cryptoki.serial(token) != serial:
            raise TokenUnavailable(
                "The PKCS#11 token was exchanged for another one; try again.", retry_after=0.5
            )
        logged_in = self._log_in(token, pin, reserve)
        try:
            session = token.open(rw=write)
        except BaseException:
            self._forget_user(slot_id, logged_in=logged_in)
            raise
        handle = secrets.token_hex(8)  # in another process of this module it must not mean another key
        self._opened[handle] = _Opened(slot_id, session, logged_in)
        return {"handle": handle, "logged_in": logged_in}

    def logout(self, handle: str) -> None:
        """Give the handle back; with the last one of a token its login ends."""
        opened = self._opened.pop(handle, None)
        if opened is not None:
            cryptoki.close(opened.session)
            self._forget_user(opened.slot_id, logged_in=opened.logged_in)

    # Keys.

    def find(
        self, handle: str, key_id: bytes | None, label: str | None, by_certificate: bool
    ) -> dict[str, Any] | None:
        """The private key meant, which `sign` uses from now on, or None. Raises `Conflict` for several."""
        opened = self._use(handle)
        look = cryptoki.private_keys_by_certificate if by_certificate else cryptoki.private_keys
        found = look(opened.session, key_id, label)
        if len(found) > 1:
            raise Conflict("The PKCS#11 URI names several keys of the token; add id= or object= to it.")
        opened.key = found[0] if found else None
        return cryptoki.describe_key(opened.session, opened.key) if found else None

    def certificates(self, handle: str) -> list[tuple[bytes, bytes]]:
        """CKA_ID and CKA_VALUE of the X.509 certificates."""
        return cryptoki.certificates(self._use(handle).session)

    def sign(
        self, handle: str, mechanism: int, parameters: list[int] | None, data: bytes, pin: SecretBytes | None
    ) -> bytes:
        """C_Sign. A PIN is given again for a key with CKA_ALWAYS_AUTHENTICATE; errors as `login`."""
        opened = self._use(handle)
        given = None if pin is None else _text(pin)
        with _pin_errors(opened.session.token, USER_PIN):
            signature = cryptoki.sign(opened.key, mechanism, parameters, data, given)
        del self._losses[opened.slot_id]
        return signature

    # Personalisation.

    def generate(
        self, handle: str, key_type: int, size: int, params: bytes, key_id: bytes, label: str
    ) -> dict[str, Any]:
        """A key pair that can only sign, and never leaves; the one that was found before is gone."""
        opened = self._use(handle)
        old = [] if opened.key is None else cryptoki.belongings(opened.session, opened.key)
        opened.key = cryptoki.generate(opened.session, key_type, size, params, key_id, label)
        cryptoki.destroy(old)
        del self._losses[opened.slot_id]
        return cryptoki.describe_key(opened.session, opened.key)

    def store_certificate(self, handle: str, subject: bytes, label: str, certificate: bytes) -> None:
        """A certificate object beside the key; those of the key that were there are gone."""
        opened = self._use(handle)
        cryptoki.store_certificate(opened.session, opened.key, subject, label, certificate)

    def destroy(self, handle: str) -> None:
        """The key that was found, its public key and its certificates are gone."""
        opened = self._use(handle)
        cryptoki.destroy(cryptoki.belongings(opened.session, opened.key))
        opened.key = None

    def change_pin(self, slot_id: int, old: SecretBytes, new: SecretBytes, reserve: int) -> None:
        """C_SetPIN of the user PIN. Raises `PinRejected`, `PinBlocked`, `InvalidRequest`."""
        token = self._token(slot_id)
        check_user_pin(cryptoki.flags(token), reserve)
        session = token.open(rw=True)
        try:
            with _pin_errors(token, USER_PIN), _new_pin_errors():
                session.set_pin(_text(old), _text(new))
        finally:
            cryptoki.close(session)
        login = self._logins.get(slot_id)
        if login is not None:
            login.tag = self._tags.of(new)

    def unblock_pin(self, slot_id: int, so_pin: SecretBytes, new: SecretBytes, reserve: int) -> None:
        """C_InitPIN; whoever uses the token has to open it anew. Errors are about the SO PIN."""
        token = self._token(slot_id)
        SO_PIN.check_tries(cryptoki.flags(token), reserve)
        self._forget_token(slot_id)
        with _pin_errors(token, SO_PIN):
            session = token.open(rw=True, so_pin=_text(so_pin))
        try:
            with _new_pin_errors():
                session.init_pin(_text(new))
        finally:
            cryptoki.close(session)

    # What all of them need.

    def _library(self) -> Any:
        if self._loaded is None:
            self._loaded = cryptoki.load(self._path)
        return self._loaded

    def _token(self, slot_id: int) -> Any:
        for token in cryptoki.tokens(self._library()):
            if token.slot.slot_id == slot_id:
                return token
        self._forget_token(slot_id)
        raise TokenUnavailable("The PKCS#11 token is not in its slot any more; put it back.", retry_after=1.0)

    def _use(self, handle: str) -> _Opened:
        opened = self._opened.get(handle)
        if opened is None:
            raise TokenUnavailable(
                "The PKCS#11 token was lost and is opened anew; try again.", retry_after=0.5
            )
        return opened

    def _log_in(self, token: Any, pin: SecretBytes | None, reserve: int) -> bool:
        """Whether private objects can be used now; False without a PIN, or where none is needed."""
        flags = cryptoki.flags(token)
        if TokenFlag.CKF_LOGIN_REQUIRED not in flags:
            return False
        if pin is None and TokenFlag.CKF_PROTECTED_AUTHENTICATION_PATH not in flags:
            return False
        tag = self._tags.of(pin or SecretBytes(b""))
        login = self._login_that_lasts(token)
        if login is None:
            check_user_pin(flags, reserve)
            with _pin_errors(token, USER_PIN):
                session = cryptoki.log_in(token, None if pin is None else _text(pin))
            login = self._logins[token.slot.slot_id] = _Login(session, cryptoki.serial(token), tag)
        elif login.tag != tag:  # the right one is known: this one costs no try
            raise USER_PIN.rejected(flags)
        login.users += 1
        return True

    def _login_that_lasts(self, token: Any) -> _Login | None:
        """The login to a token, unless it, or another one in its slot, was pulled out since."""
        slot_id = token.slot.slot_id
        login = self._logins.get(slot_id)
        if login is None or (login.serial == cryptoki.serial(token) and cryptoki.is_open(login.session)):
            return login
        self._forget_token(slot_id)
        return None

    def _forget_user(self, slot_id: int, *, logged_in: bool) -> None:
        login = self._logins.get(slot_id) if logged_in else None
        if login is None:
            return
        login.users -= 1
        if login.users <= 0:
            del self._logins[slot_id]
            cryptoki.close(login.session)

    def _forget_token(self, slot_id: int) -> None:
        """All handles of a token are dead from now on."""
        for handle, opened in list(self._opened.items()):
            if opened.slot_id == slot_id:
                del self._opened[handle]
                cryptoki.close(opened.session)
        login = self._logins.pop(slot_id, None)
        if login is not None:
            cryptoki.close(login.session)

    def _guarded(self, method: Callable[..., Result], *arguments: Any) -> Result:
        """CKR codes to our errors; PINs are wiped."""
        try:
            return method(*arguments)
        except cryptoki.TOKEN_LOST as error:
            self._lost(arguments, error)
        except cryptoki.REFUSED as error:
            raise Conflict(
                f"The PKCS#11 token does not do that ({cryptoki.code(error)}); see what its module supports."
            ) from error
        except cryptoki.PinExpired as error:
            raise TokenNotReady("The user PIN of the PKCS#11 token has expired; change it.") from error
        except cryptoki.CkrError as error:
            self._broken(error)
        finally:
            for argument in arguments:
                if isinstance(argument, SecretBytes):
                    argument.wipe()

    def _lost(self, arguments: tuple[Any, ...], error: cryptoki.CkrError) -> NoReturn:
        """Forget the one token first; when it has not signed since, the module itself is in doubt."""
        subject = arguments[0] if arguments else None
        opened = self._opened.get(subject) if isinstance(subject, str) else None
        slot_id = subject if opened is None else opened.slot_id
        if not isinstance(slot_id, int) or self._losses[slot_id]:
            self._broken(error)
        self._losses[slot_id] += 1
        self._forget_token(slot_id)
        raise TokenUnavailable(
            f"The PKCS#11 token does not answer ({cryptoki.code(error)}); it is opened anew.", retry_after=0.5
        ) from error

    def _broken(self, error: cryptoki.CkrError) -> NoReturn:
        name, code = Path(self._path).name, cryptoki.code(error)
        failure = TokenUnavailable(
            f"The PKCS#11 module {name} broke down ({code}); it is loaded anew.", retry_after=1.0
        )
        failure.metadata["broken"] = "module"
        raise failure from error


@contextlib.contextmanager
def _pin_errors(token: Any, kind: PinKind) -> Iterator[None]:
    """What became of a PIN."""
    try:
        yield
    except cryptoki.WRONG_PIN as error:
        raise kind.rejected(cryptoki.flags_now(token)) from error
    except cryptoki.PinLocked as error:
        raise PinBlocked(f"The {kind.name} of the PKCS#11 token is locked; {kind.remedy}.") from error
    except cryptoki.PinExpired as error:
        raise TokenNotReady(f"The {kind.name} of the PKCS#11 token has expired; change it.") from error
    except cryptoki.UserPinNotInitialized as error:
        raise TokenNotReady("The PKCS#11 token has no user PIN yet; set one with the SO PIN.") from error
    except cryptoki.FunctionCanceled as error:
        raise PinMissing(
            "Nobody gave the PIN at the reader's own keys; run 'vmtokenctl token reset' and give it there."
        ) from error


@contextlib.contextmanager
def _new_pin_errors() -> Iterator[None]:
    try:
        yield
    except cryptoki.UNFIT_NEW_PIN as error:
        raise InvalidRequest(
            f"The PKCS#11 token does not take such a new PIN ({cryptoki.code(error)}); choose another."
        ) from error


def _text(pin: SecretBytes) -> str:
    """CK_UTF8CHAR: the binding wants text."""
    try:
        return pin.reveal().decode()
    except UnicodeDecodeError:
        raise InvalidRequest("A PIN of a PKCS#11 token is UTF-8 text; give another.") from None


def main() -> NoReturn:
    """Serve the module whose path is the argument."""
    events = outlet()
    serve(events, Module(sys.argv[1]).handlers())


if __name__ == "__main__":
    main()
