"""The inside of a module's process: which codes cost the token, which the module, and what a login costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pkcs11
import pytest

from dom0_broker.backends.pkcs11 import cryptoki
from dom0_broker.backends.pkcs11.child import Module
from dom0_broker.backends.pkcs11.codes import TokenFlag
from tests.fakes.pkcs11_library import READY, FakeLibrary, FakeTokenInfo
from vmtoken.errors import (
    Conflict,
    PinBlocked,
    PinMissing,
    PinRejected,
    TokenNotReady,
    TokenUnavailable,
)
from vmtoken.secret import SecretBytes

SLOT, SERIAL, RESERVE = 7, "0001", 1
RIGHT, WRONG = b"1234", b"9999"


class Inside:
    """The handlers of a module whose library is a fake."""

    def __init__(self, info: FakeTokenInfo) -> None:
        self.info = info
        module = Module("/usr/lib/fake.so")
        self.library = module._loaded = FakeLibrary(info)
        self.handlers = module.handlers()

    def call(self, method: str, *arguments: Any) -> Any:
        return self.handlers[method](*arguments)

    def login(self, pin: bytes | None = RIGHT, reserve: int = RESERVE) -> str:
        given = None if pin is None else SecretBytes(pin)
        answer = self.call("login", SLOT, SERIAL, given, reserve, False)
        handle: str = answer["handle"]
        return handle

    def ready(self) -> str:
        handle = self.login()
        assert self.call("find", handle, None, None, False) is not None
        return handle

    def sign(self, handle: str) -> bytes:
        signature: bytes = self.call("sign", handle, 0x1041, None, b"data", None)
        return signature


@pytest.fixture
def info() -> FakeTokenInfo:
    return FakeTokenInfo()


@pytest.fixture
def inside(info: FakeTokenInfo) -> Inside:
    return Inside(info)


def every_code() -> list[type[Exception]]:
    return [
        kind
        for kind in vars(pkcs11.exceptions).values()
        if isinstance(kind, type) and issubclass(kind, pkcs11.PKCS11Error)
    ]


@pytest.mark.parametrize("code", every_code(), ids=lambda code: code.__name__)
def test_every_code_has_a_meaning_while_signing(inside: Inside, code: type[Exception]) -> None:
    """A refusal leaves all as it is, a lost token its login; every other code asks for a new process."""
    handle = inside.ready()
    inside.info.failure = code()
    with pytest.raises(
        (TokenUnavailable, TokenNotReady, Conflict, PinRejected, PinBlocked, PinMissing)
    ) as said:
        inside.sign(handle)
    inside.info.failure = None
    asks_for_reload = "broken" in said.value.metadata
    is_pin = issubclass(code, (*cryptoki.WRONG_PIN, *PIN_CODES))
    assert asks_for_reload is not (issubclass(code, (*cryptoki.REFUSED, *cryptoki.TOKEN_LOST)) or is_pin)
    if issubclass(code, cryptoki.TOKEN_LOST):
        with pytest.raises(TokenUnavailable, match="opened anew"):
            inside.sign(handle)
        assert not inside.info.logged_in
    else:
        assert inside.sign(handle) == b"data"


PIN_CODES = (
    cryptoki.PinLocked,
    cryptoki.PinExpired,
    cryptoki.UserPinNotInitialized,
    cryptoki.FunctionCanceled,
)


@pytest.mark.parametrize(
    "code",
    [
        pkcs11.GeneralError,
        pkcs11.HostMemory,
        pkcs11.FunctionFailed,
        pkcs11.PKCS11Error,
        pkcs11.UserAlreadyLoggedIn,
    ],
)
def test_fatal_codes_ask_for_a_reload(inside: Inside, code: type[Exception]) -> None:
    """PKCS11Error itself stands for codes that the binding has no class for."""
    handle = inside.ready()
    inside.info.failure = code()
    with pytest.raises(TokenUnavailable, match=code.__name__) as broken:
        inside.sign(handle)
    assert broken.value.metadata["broken"] == "module"


def test_token_that_is_lost_twice_asks_for_a_reload(inside: Inside) -> None:
    handle = inside.ready()
    inside.info.failure = pkcs11.DeviceError()
    with pytest.raises(TokenUnavailable) as first:
        inside.sign(handle)
    with pytest.raises(TokenUnavailable) as second:
        inside.login()
    assert "broken" not in first.value.metadata
    assert "broken" in second.value.metadata


def test_token_that_signed_in_between_is_lost_once(inside: Inside) -> None:
    for _ in range(3):
        inside.info.failure = None
        handle = inside.ready()
        assert inside.sign(handle) == b"data"
        inside.info.failure = pkcs11.DeviceRemoved()
        with pytest.raises(TokenUnavailable) as lost:
            inside.sign(handle)
        assert "broken" not in lost.value.metadata


# Logins ---------------------------------------------------------------------------------------------------


def test_one_login_serves_many_and_ends_with_the_last(inside: Inside) -> None:
    handles = [inside.login() for _ in range(3)]
    assert inside.info.logins == 1
    for handle in handles:
        assert inside.info.logged_in
        inside.call("logout", handle)
        inside.call("logout", handle)
    assert not inside.info.logged_in


def test_wrong_pin_is_refused_without_a_try_beside_a_right_one(inside: Inside) -> None:
    inside.login()
    with pytest.raises(PinRejected):
        inside.login(WRONG)
    assert inside.info.logins == 1


@pytest.mark.parametrize(
    ("flag", "reserve"),
    [
        (TokenFlag.CKF_USER_PIN_LOCKED, 0),
        (TokenFlag.CKF_USER_PIN_FINAL_TRY, 1),
        (TokenFlag.CKF_USER_PIN_COUNT_LOW, 2),
    ],
)
def test_no_login_touches_the_reserve(inside: Inside, flag: TokenFlag, reserve: int) -> None:
    inside.info.flags |= flag
    with pytest.raises(PinBlocked):
        inside.login(RIGHT, reserve)
    assert inside.info.logins == 0


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (pkcs11.PinIncorrect, PinRejected),
        (pkcs11.PinLenRange, PinRejected),
        (pkcs11.PinInvalid, PinRejected),
        (pkcs11.PinLocked, PinBlocked),
        (pkcs11.PinExpired, TokenNotReady),
        (pkcs11.UserPinNotInitialized, TokenNotReady),
        (pkcs11.FunctionCancelled, PinMissing),
    ],
)
def test_what_became_of_a_pin_never_asks_for_a_reload(
    inside: Inside, code: type[Exception], error: type[Exception]
) -> None:
    inside.info.login_failure = code()
    with pytest.raises(error) as said:
        inside.login()
    assert "broken" not in said.value.metadata  # type: ignore[attr-defined]


def test_pin_is_given_at_the_keys_of_the_reader(inside: Inside) -> None:
    inside.info.flags |= TokenFlag.CKF_PROTECTED_AUTHENTICATION_PATH
    handle = inside.login(None)
    assert inside.info.logged_in
    inside.call("logout", handle)
    inside.info.pad_pin = "typed wrong"
    with pytest.raises(PinRejected, match="two tries or more"):
        inside.login(None)


def test_token_without_login_takes_no_pin(inside: Inside) -> None:
    inside.info.flags = READY & ~TokenFlag.CKF_LOGIN_REQUIRED
    answer = inside.call("login", SLOT, SERIAL, SecretBytes(WRONG), RESERVE, False)
    assert answer["logged_in"] is False
    assert inside.info.logins == 0


def test_without_a_pin_nothing_is_tried(inside: Inside) -> None:
    assert inside.call("login", SLOT, SERIAL, None, RESERVE, False)["logged_in"] is False
    assert inside.info.logins == 0


def test_token_that_was_exchanged_gets_no_pin(inside: Inside) -> None:
    with pytest.raises(TokenUnavailable, match="exchanged"):
        inside.call("login", SLOT, "0002", SecretBytes(RIGHT), RESERVE, False)
    assert inside.info.logins == 0


@pytest.mark.parametrize(("serial", "pin"), [(b"0001", "1234"), (b"0002", "1234"), (b"0002", "5678")])
def test_login_does_not_outlast_its_token(inside: Inside, serial: bytes, pin: str) -> None:
    """The token was pulled while nobody used it; what is there now gets its PIN."""
    before = inside.login()
    inside.info.put_in(serial, pin)
    answer = inside.call("login", SLOT, serial.decode(), SecretBytes(pin.encode()), RESERVE, False)
    assert answer["logged_in"]
    assert inside.info.logged_in
    with pytest.raises(TokenUnavailable, match="opened anew"):
        inside.call("find", before, None, None, False)


def test_pins_are_wiped_after_use(inside: Inside) -> None:
    for pin, outcome in ((RIGHT, None), (WRONG, PinRejected)):
        secret = SecretBytes(pin)
        call: Callable[[], Any] = lambda: inside.call("login", SLOT, SERIAL, secret, RESERVE, False)  # noqa: B023, E731
        if outcome is None:
            call()
        else:
            with pytest.raises(outcome):
                call()
        assert len(secret) == 0


@pytest.mark.parametrize("code", [pkcs11.PKCS11Error, pkcs11.SlotIDInvalid])
def test_tokens_that_come_or_go_while_they_are_listed_do_not_cost_the_module(
    inside: Inside, code: type[Exception]
) -> None:
    inside.library.failures = [code()]
    inside.library.times_shown = 2
    assert [token["serial"] for token in inside.call("tokens")] == [SERIAL]


def test_module_that_cannot_list_its_slots_is_loaded_anew(inside: Inside) -> None:
    inside.library.failures = [pkcs11.GeneralError() for _ in range(10)]
    with pytest.raises(TokenUnavailable, match="GeneralError") as broken:
        inside.call("tokens")
    assert "broken" in broken.value.metadata


def test_uninitialised_token_is_not_shown(inside: Inside) -> None:
    assert [token["serial"] for token in inside.call("tokens")] == [SERIAL]
    inside.info.flags &= ~TokenFlag.CKF_TOKEN_INITIALIZED
    assert inside.call("tokens") == []
