"""A PKCS#11 library as the binding shows one, for what no module at hand does: PIN pads, odd codes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pkcs11

from dom0_broker.backends.pkcs11.codes import SlotFlag, TokenFlag

READY = TokenFlag.CKF_TOKEN_INITIALIZED | TokenFlag.CKF_LOGIN_REQUIRED | TokenFlag.CKF_USER_PIN_INITIALIZED


@dataclass
class FakeSlot:
    """A slot; its token is what the test changes."""

    token_info: FakeTokenInfo
    slot_id: int = 7
    slot_description: str = "fake slot"
    flags: SlotFlag = SlotFlag.CKF_TOKEN_PRESENT

    def get_token(self) -> FakeToken:
        return FakeToken(self, self.token_info.flags, self.token_info)

    def get_mechanisms(self) -> set[int]:
        return {0x1041}


@dataclass
class FakeTokenInfo:
    """What the token does; `pin` is right, anything else is not."""

    flags: TokenFlag = READY
    pin: str = "1234"
    serial: bytes = b"0001"
    insertions: int = 1
    failure: Exception | None = None
    """What every call on a session raises from now on."""

    login_failure: Exception | None = None
    logged_in: bool = False
    logins: int = 0
    pad_pin: str = "1234"
    """What a person types at the reader's own keys."""

    def put_in(self, serial: bytes, pin: str) -> None:
        """Take the token out, and put one in; sessions and login are gone, and nobody was told."""
        self.serial, self.pin = serial, pin
        self.logged_in = False
        self.insertions += 1


@dataclass
class FakeToken:
    """CK_TOKEN_INFO at one moment, and what opens sessions."""

    slot: FakeSlot
    flags: TokenFlag
    info: FakeTokenInfo
    label: str = "fake"
    manufacturer_id: str = "nobody"
    model: str = "none"

    @property
    def serial(self) -> bytes:
        return self.info.serial

    def open(self, rw: bool = False, user_pin: object = None, so_pin: str | None = None) -> FakeSession:
        if self.info.failure is not None:
            raise self.info.failure
        if user_pin is not None:
            self._log_in(user_pin)
        return FakeSession(self, logged_in=user_pin is not None)

    def _log_in(self, pin: object) -> None:
        self.info.logins += 1
        if self.info.logged_in:
            raise pkcs11.UserAlreadyLoggedIn
        if self.info.login_failure is not None:
            raise self.info.login_failure
        typed = self.info.pad_pin if pin is pkcs11.types.PROTECTED_AUTH else pin
        if typed != self.info.pin:
            self.info.flags |= TokenFlag.CKF_USER_PIN_COUNT_LOW
            raise pkcs11.PinIncorrect
        self.info.logged_in = True


@dataclass
class FakeSession:
    """One session with one private key."""

    token: FakeToken
    logged_in: bool = False
    key: FakeKey = field(init=False)
    insertion: int = field(init=False)

    def __post_init__(self) -> None:
        self.key = FakeKey(self.token.info)
        self.insertion = self.token.info.insertions

    def get_objects(self, template: dict[object, object]) -> list[FakeKey]:
        self._check()
        if self.token.info.failure is not None:
            raise self.token.info.failure
        return [self.key]

    def close(self) -> None:
        self._check()
        if self.logged_in:
            self.token.info.logged_in = False

    def _check(self) -> None:
        if self.insertion != self.token.info.insertions:
            raise pkcs11.SessionHandleInvalid


class FakeKey(pkcs11.SignMixin):
    """A private key that has no attributes to show, and signs with the octets that it is given."""

    def __init__(self, info: FakeTokenInfo) -> None:
        self.info = info

    def __getitem__(self, attribute: object) -> object:
        raise pkcs11.AttributeTypeInvalid

    def sign(self, data: bytes, **options: object) -> bytes:  # type: ignore[override]
        if self.info.failure is not None:
            raise self.info.failure
        return data


class FakeLibrary:
    """What `pkcs11.lib` gives."""

    def __init__(self, info: FakeTokenInfo) -> None:
        self.slot = FakeSlot(info)
        self.failures: list[Exception] = []
        """What `get_slots` raises before it answers."""

        self.times_shown = 1

    def get_slots(self, token_present: bool = False) -> list[FakeSlot]:
        if self.failures:
            raise self.failures.pop()
        return [self.slot] * self.times_shown

    def reinitialize(self) -> None:
        pass
