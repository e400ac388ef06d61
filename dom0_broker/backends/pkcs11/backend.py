"""Pkcs11Backend: `pkcs11:` URIs (RFC 7512) to keys behind PKCS#11 modules."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from dom0_broker.backends.base import NOTHING_KEPT, FoundToken, Kept, Pins, PinState
from dom0_broker.backends.pkcs11.codes import TokenFlag
from dom0_broker.backends.pkcs11.issuer import Pkcs11Issuer
from dom0_broker.backends.pkcs11.key import Pkcs11Key
from dom0_broker.backends.pkcs11.libraries import checked_library, libraries_of
from dom0_broker.backends.pkcs11.module import KeyInfo, Module, Session, TokenInfo
from dom0_broker.backends.pkcs11.objects import Found, chain_for, spki
from dom0_broker.backends.pkcs11.pin_source import pin_file, read_pin
from dom0_broker.backends.pkcs11.pins import user_pin_state
from dom0_broker.backends.pkcs11.signing import ways_of
from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from dom0_broker.engine import EngineToken
from vmtoken.errors import Conflict, InvalidRequest, PinMissing, TokenUnavailable, VmTokenError
from vmtoken.secret import SecretBytes

_POLL: Final = 5.0
"""Seconds between two looks for tokens that came or went: PKCS#11 modules cannot be asked to tell."""


class Pkcs11Backend:
    """Thread-safe. A module has one process, however many tokens and keys are open in it."""

    def __init__(
        self,
        modules: Sequence[Path] = (),
        *,
        timeout: float = 25.0,
        pin_reserve: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`modules` are looked through for tokens whose URI names no module, and by `discover`.

        `environment` is for the processes of modules, beside our own.
        """
        if importlib.util.find_spec("pkcs11") is None:
            raise Conflict("PKCS#11 tokens need python-pkcs11; install vmtoken with its extra 'pkcs11'.")
        self._environment = environment or {}
        self._configured = tuple(modules)
        self._timeout = timeout
        self._pin_reserve = pin_reserve
        self._lock = threading.Lock()
        self._modules: dict[Path, Module] = {}
        self._closed = threading.Event()

    def create(self, locator: str, pins: Pins) -> None:
        """See `TokenBackend.create`: tokens come with their PINs, only keys are made in them."""
        _uri(locator)
        raise Conflict(
            "A PKCS#11 token has its PINs already, and gets no others here: 'vmtokenctl token create NAME "
            "URI' makes a key in it."
        )

    def open(self, locator: str, user_pin: SecretBytes | None, kept: Kept = NOTHING_KEPT) -> EngineToken:
        """See `TokenBackend.open`."""
        key = self.open_key(locator, user_pin, kept)
        return EngineToken(
            key,
            anchors=kept.anchors,
            serial=key.token.serial or key.token.token,
            application=f"PKCS#11, {key.token.model}",
            assurance=key.token.assurance,
        )

    def open_key(self, locator: str, user_pin: SecretBytes | None, kept: Kept = NOTHING_KEPT) -> Pkcs11Key:
        """The key without the engine around it. Errors as `open`."""
        uri = _uri(locator)
        with self._session(uri, user_pin) as (session, pin):
            return Pkcs11Key.find(session, uri, pin, kept)

    def open_issuer(
        self, locator: str, operator_pin: SecretBytes | None, user_pin: SecretBytes | None = None
    ) -> Pkcs11Issuer:
        """See `TokenBackend.open_issuer`: keys are the user's, so the SO PIN is of no use."""
        uri = _uri(locator)
        with self._session(uri, user_pin, write=True) as (session, pin):
            if session.needs_login and not session.logged_in:
                raise PinMissing(
                    "The PKCS#11 token needs its user PIN to be personalised; give it to the broker."
                )
            return Pkcs11Issuer(session, uri, pin)

    def pin_holder(self, locator: str) -> str:
        """See `TokenBackend.pin_holder`: the token, and where its PIN lies if the URI says so."""
        uri = _uri(locator)
        is_told = None not in {uri.token, uri.serial, uri.manufacturer}
        token = uri if is_told else self._place(uri)[1]
        name = Pkcs11Uri(token=token.token, manufacturer=token.manufacturer, serial=token.serial)
        return str(replace(name, pin_source=uri.pin_source))

    def pin_state(self, locator: str) -> PinState:
        """See `TokenBackend.pin_state`: PKCS#11 tells of the last try, and of none left."""
        _, token = self._place(_uri(locator))
        return user_pin_state(token.flags)

    def change_user_pin(self, locator: str, old_pin: SecretBytes, new_pin: SecretBytes) -> None:
        """See `TokenBackend.change_user_pin`."""
        module, token = self._place(_with_pin_kept_here(locator))
        module.change_pin(token, old_pin, new_pin)

    def unblock_user_pin(self, locator: str, code: SecretBytes, new_pin: SecretBytes) -> None:
        """See `TokenBackend.unblock_user_pin`: `code` is the SO PIN."""
        module, token = self._place(_with_pin_kept_here(locator))
        module.unblock_pin(token, code, new_pin)

    def discover(self) -> list[FoundToken]:
        """See `TokenBackend.discover`: what the configured modules show without a PIN."""
        return [found for path in self._configured for found in self._found_in(path)]

    def present(self, locator: str) -> bool:
        """See `TokenBackend.present`: what the modules showed last; asks none, so it never waits."""
        uri = _uri(locator)
        with self._lock:
            modules = list(self._modules.values())
        return any(token.is_meant_by(uri) for module in modules for token in module.last_seen)

    def reset(self, locator: str) -> None:
        """See `TokenBackend.reset`: the module is loaded anew, with all its tokens."""
        for library in libraries_of(_uri(locator), self._configured):
            self._module(library).reset()

    def watch(self, changed: Callable[[], None]) -> None:
        """See `TokenBackend.watch`: the modules in use are asked now and then."""
        threading.Thread(target=self._poll, args=(changed,), name="PKCS#11 tokens", daemon=True).start()

    def close(self) -> None:
        """See `TokenBackend.close`."""
        self._closed.set()
        with self._lock:
            modules = list(self._modules.values())
        for module in modules:
            module.close()

    def delete(self, locator: str) -> None:
        """See `TokenBackend.delete`: only under a PIN that lies where the URI says."""
        uri = _uri(locator)
        if uri.pin_source is None:
            raise Conflict(
                "A key in a PKCS#11 token is destroyed under its PIN: use 'vmtokenctl token retire', or the "
                "tools of the token's maker."
            )
        issuer = self.open_issuer(locator, None)
        with contextlib.closing(issuer):
            issuer.destroy_key()

    def module_of(self, locator: str) -> Module:
        """The module that the token is in just now, for those who look after processes."""
        module, _ = self._place(_uri(locator))
        return module

    @contextlib.contextmanager
    def _session(
        self, uri: Pkcs11Uri, user_pin: SecretBytes | None, *, write: bool = False
    ) -> Iterator[tuple[Session, SecretBytes | None]]:
        """A session that is closed again if the block raises; a PIN that was read from a file is wiped."""
        module, token = self._place(uri)
        read = None if uri.pin_source is None else read_pin(uri.pin_source)
        pin = read or user_pin
        try:
            session = module.open(token, pin, write=write)
            try:
                yield session, pin
            except BaseException:
                session.close()
                raise
        finally:
            if read is not None:
                read.wipe()

    def _place(self, uri: Pkcs11Uri) -> tuple[Module, TokenInfo]:
        """Module and token of a URI. Raises `TokenUnavailable` while it is away, `Conflict` for two."""
        modules = [self._module(library) for library in libraries_of(uri, self._configured)]
        modules = [module for module in modules if module.describes(uri)]
        found = list(_matching(modules, uri, refresh=False)) or list(_matching(modules, uri, refresh=True))
        if not found:
            raise TokenUnavailable(
                "No PKCS#11 module shows the token of this URI just now; plug it in, or correct the URI.",
                retry_after=_POLL,
            )
        if len(found) > 1:
            raise Conflict("The PKCS#11 URI fits several tokens; add serial=, or module-path= to its end.")
        return found[0]

    def _module(self, library: Path) -> Module:
        with self._lock:
            module = self._modules.get(library)
            if module is None:
                module = Module(
                    library,
                    timeout=self._timeout,
                    pin_reserve=self._pin_reserve,
                    environment=self._environment,
                )
                self._modules[library] = module
            return module

    def _found_in(self, path: Path) -> Iterator[FoundToken]:
        """One module's tokens; whatever is wrong with it does not hide the others."""
        hint = str(path) if len(self._configured) > 1 else None
        try:
            module = self._module(checked_library(path))
            tokens = module.tokens()
        except VmTokenError as error:
            uri = str(Pkcs11Uri(module_path=str(path)))
            yield FoundToken(uri, f"module {path}", problem=error.message)
            return
        for token in tokens:
            try:
                yield from _found(module, token, hint)
            except VmTokenError as error:
                uri = str(Pkcs11Uri(token=token.token, serial=token.serial, module_path=hint))
                yield FoundToken(uri, f"slot '{token.slot_description}'", problem=error.message)

    def _poll(self, changed: Callable[[], None]) -> None:
        before: frozenset[tuple[str, str]] = frozenset()
        while not self._closed.wait(_POLL):
            now = frozenset(self._present())
            if now != before:
                changed()
            before = now

    def _present(self) -> Iterator[tuple[str, str]]:
        with self._lock:
            modules = list(self._modules.values())
        for module in modules:
            with contextlib.suppress(VmTokenError):
                module.tokens()
            yield from (token.identity for token in module.last_seen)


def _uri(locator: str) -> Pkcs11Uri:
    """The URI, checked for what tokens here must not hang on."""
    uri = Pkcs11Uri.parse(f"pkcs11:{locator}")
    if (uri.slot_id, uri.slot_description, uri.slot_manufacturer) != (None, None, None):
        raise InvalidRequest(
            "A token is not known by the slot that it is in just now: leave slot- attributes out of the "
            "PKCS#11 URI, and name the token with token= or serial=."
        )
    if not uri.names_a_token:
        raise InvalidRequest("The PKCS#11 URI does not say which token is meant; add token= or serial=.")
    if uri.type in {"secret-key", "data"}:
        raise InvalidRequest(
            "The PKCS#11 URI names no key pair; leave type= out of it, or write type=private."
        )
    if uri.pin_source is not None:
        pin_file(uri.pin_source)
    return uri


def _with_pin_kept_here(locator: str) -> Pkcs11Uri:
    """A new PIN would not be the one in the file, which would then be tried, and be wrong."""
    uri = _uri(locator)
    if uri.pin_source is not None:
        raise Conflict(
            "The PIN of this PKCS#11 token lies in the file of its pin-source: change it with the tools of "
            "the token's maker, and then in the file."
        )
    return uri


def _matching(
    modules: Iterable[Module], uri: Pkcs11Uri, *, refresh: bool
) -> Iterator[tuple[Module, TokenInfo]]:
    for module in modules:
        for token in module.tokens(refresh=refresh):
            if token.is_meant_by(uri):
                yield module, token


def _found(module: Module, token: TokenInfo, hint: str | None) -> Iterator[FoundToken]:
    """One entry a key that shows without a PIN; one for the token when none does."""
    keys, certificates = module.look(token)
    known = {key.id for key in keys}
    others = {found.id for found in certificates if found.id and found.id not in known}
    names = [(key.id, key.label, key) for key in keys] + [(key_id, "", None) for key_id in sorted(others)]
    for key_id, label, key in names or [(b"", "", None)]:
        named = {"id": key_id} if key_id else {"object": label} if label else {}
        uri = Pkcs11Uri(token=token.token, serial=token.serial, module_path=hint, **named)
        yield _entry(str(uri), token, key, key_id, certificates)


def _entry(
    uri: str, token: TokenInfo, key: KeyInfo | None, key_id: bytes, certificates: Sequence[Found]
) -> FoundToken:
    public = key.public_key() if key is not None else None
    if public is None:
        public = next((each.public_key() for each in certificates if key_id and each.id == key_id), None)
    chain = chain_for(spki(public), certificates, key_id) if public is not None else ()
    schemes = [scheme.name for scheme in ways_of(public, token.mechanisms)] if public is not None else []
    can_write = TokenFlag.CKF_WRITE_PROTECTED not in token.flags
    return FoundToken(
        uri,
        f"slot '{token.slot_description}'",
        application=f"PKCS#11, {token.model}",
        serial=token.serial,
        capabilities=(*schemes, *(["personalisation"] if can_write else [])),
        certificate=chain[0] if chain else b"",
        pin=user_pin_state(token.flags),
        problem="" if schemes else "It shows no key that TLS could use without its PIN.",
    )
